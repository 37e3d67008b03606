"""What agents share: where a body is divided, and what is known again."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ml_api.predict.candles import NOT_QUICK
from ml_api.predict.market import Market, divide, market_of
from ml_api.predict.quick import QuickRequest, read_request

NAMES = st.sampled_from(["candles", "agentId", "a", '"candles":[', '\\"candles\\":[', "é"])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | NAMES | st.just([]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


def members(text: bytes) -> list[tuple[str, object]]:
    """The members of an object in their order, also those whose names come twice; ValueError where it is none."""
    pairs = json.loads(text, object_pairs_hook=list)
    if not text.startswith(b"{"):
        raise ValueError("no object")
    return [tuple(pair) for pair in pairs]


def parts(body: bytes) -> tuple[bytes, bytes]:
    """Both objects that a body is divided into."""
    before, place = divide(body)
    return before, b"{" + body[place:]


@given(st.lists(st.tuples(NAMES, VALUES), max_size=5))
@example([("a", {"candles": [1]}), ("candles", [2])])
@example([("candles", [1]), ("a", 1), ("candles", [2]), ("a", 2)])
def test_if_both_parts_are_objects_the_whole_has_the_members_of_both(pairs: list[tuple[str, object]]) -> None:
    written = [f"{json.dumps(name)}:{json.dumps(value, separators=(',', ':'))}" for name, value in pairs]
    whole = f"{{{','.join(written)}}}"
    try:
        first, second = (members(part) for part in parts(whole.encode()))
    except ValueError:
        return
    assert first[-1] == ("candles", [])
    assert first[:-1] + second == members(whole.encode())


@given(
    cut=st.integers(0, 200), put=st.sampled_from([b"", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"x"])
)
def test_two_objects_are_never_made_of_a_text_that_is_none(cut: int, put: bytes) -> None:
    whole = b'{"agentId":"a \\"b\\"","portfolio":{"cash":[1,{"x":"}"}]},"candles":[{"a":["]"]}],"instructions":"[{"}'
    damaged = whole[:cut] + put + whole[cut + 1 :]
    try:
        first, second = (members(part) for part in parts(damaged))
    except ValueError:
        return
    assert first[:-1] + second == members(damaged)


def of(body: bytes) -> Market:
    """The market that a body ends with."""
    return market_of(body, divide(body)[1])


def test_agents_that_send_the_same_candles_share_what_follows_from_them(body: Callable[..., bytes]) -> None:
    first, second = (read_request(body(agent=agent)) for agent in ("alice", "bob"))
    assert isinstance(first, QuickRequest)
    assert isinstance(second, QuickRequest)
    assert (first.agent_id, second.agent_id) == ("alice", "bob")
    assert first.outlook is second.outlook


def test_one_digit_in_the_last_candle_makes_it_another_market(body: Callable[..., bytes]) -> None:
    text = body()
    place = text.rindex(b'"close":') + len(b'"close":')
    digit = b"1" if text[place : place + 1] != b"1" else b"2"
    other = text[:place] + digit + text[place + 1 :]
    assert len(other) == len(text)
    assert of(text) is of(text)
    assert of(other) is not of(text)


def test_a_text_that_ends_like_one_that_was_kept_is_read_whole() -> None:
    kept = market_of(b'"candles":[]}', 0)
    assert market_of(b'"candles":[]}', 0) is kept
    with pytest.raises(NOT_QUICK):
        market_of(b'"candles":["candles":[]}', 0)


def test_only_the_last_few_are_kept(body: Callable[..., bytes]) -> None:
    first = of(text := body())
    for number in range(64):
        market_of(b'"candles":[],"instructions":"%d"}' % number, 0)
    assert of(text) is not first


def test_a_text_beyond_all_measure_is_not_kept() -> None:
    text = b'"candles":[],"instructions":"%b"}' % (b"x" * 131_072)
    assert market_of(text, 0) is not market_of(text, 0)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"}",
        b'"candles":[]',
        b'"candles":[{}]}',
        b'"candles":[],"agentId":"bob"}',
        b'"candles":[]}x',
    ],
)
def test_another_shape_is_refused_and_not_kept(text: bytes) -> None:
    for _ in range(2):
        with pytest.raises(NOT_QUICK):
            market_of(text, 0)
