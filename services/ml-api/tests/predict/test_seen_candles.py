"""Candles that were seen before are not read again, and every projection equals that of the contract."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_api.predict import seen_candles
from ml_api.predict.contract import projection
from ml_api.predict.seen_candles import SeenCandles

MakeBody = Callable[..., bytes]


def outcome(read: Callable[[bytes], Any], body: bytes) -> object:
    """The result of *read*, or the type and message of its exception."""
    try:
        return read(body)
    except ValueError as error:
        return type(error), str(error)


def assert_agree(seen: SeenCandles, *bodies: bytes) -> None:
    """Project each body three times: unknown, with a known beginning, and known."""
    for _ in range(3):
        for body in bodies:
            assert outcome(seen.projection, body) == outcome(projection, body), body


def text(candles: str, *, before: str = '"agentId":"alice",', behind: str = "") -> bytes:
    return f'{{{before}"candles":{candles}{behind}}}'.encode("utf-8", "surrogateescape")


def candle(hour: int) -> str:
    """A candle that is longer than the prefix by which candles are looked up."""
    return f'{{"symbol":"BTC","note":"{"n" * 128}","timestamp":"2026-02-20T{hour}:00:00Z"}}'


ONE = f"[{candle(14)}]"
OTHER = f"[{candle(15)}]"


class TestReplays:
    """Candles that were seen twice are skipped, and only the rest of the body is read."""

    def test_candles_seen_twice_are_not_read_again(
        self, make_body: MakeBody, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, first = SeenCandles(), make_body(count=20, request="1")
        known = seen.projection(first), seen.projection(make_body(count=20, request="22"))
        monkeypatch.setattr(seen_candles, "projection", pytest.fail)
        assert seen.projection(make_body(count=20, request="333", total_value="7")) == known[0] == known[1]

    def test_another_agent_with_the_same_candles_keeps_its_own_projection(self, make_body: MakeBody) -> None:
        seen = SeenCandles()
        assert_agree(seen, make_body(count=20), make_body(count=20, agent="bob"))
        assert seen.projection(make_body(count=20, agent="carol"))[0] == "carol"

    def test_candles_with_a_common_beginning_are_read(self) -> None:
        longer = text(f"[{candle(14)},{candle(16)}]")
        seen = SeenCandles()
        assert_agree(seen, text(ONE))
        assert_agree(seen, longer, text(ONE), longer)

    def test_candles_written_with_spaces_are_remembered(
        self, make_body: MakeBody, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, body = SeenCandles(), json.dumps(json.loads(make_body(count=20))).encode()
        assert b'"candles": [{"' in body
        assert_agree(seen, body)
        monkeypatch.setattr(seen_candles, "projection", pytest.fail)
        seen.projection(body)


class TestMisleadingBodies:
    """Known candles count only where they are the value of the last `candles` member."""

    @pytest.mark.parametrize(
        "body",
        [
            text(ONE, behind=f',"candles":{OTHER}'),
            text(ONE, behind=',"candles":null'),
            text(ONE, behind=',"candles":5,"candles":[]'),
            text(ONE, behind=',"agentId":"bob"'),
            text(ONE, behind=',"agentId":7'),
            text(ONE, before=""),
            text(ONE, before='"agent_id":"bob",'),
            text(ONE, before='"agentId":"",'),
            text(ONE, before='"agentId":"alice","x":{', behind=f'}},"candles":{OTHER}'),
            text(ONE, before='"agentId":"alice","x":{', behind="}"),
            text(ONE, before='"agentId":"alice","x\\', behind=f',"candles":{OTHER}'),
            text(ONE, before='"agentId":"alice","x":"', behind='"'),
            text(ONE, behind="]"),
            text(ONE, behind=',"x":"\udcff"'),
            text(ONE)[:-1],
            text(ONE) + b" x",
            text("[" + ONE + "]"),
            text(ONE[:-1] + ',{"timestamp":1}]'),
            text(ONE[:-1] + ',{"timestamp":1,"timestamp":"2026-02-20T16:00:00Z"}]'),
            text(ONE[:-1] + ',{"timestamp":"soon"}]'),
            text(ONE[:-1] + ',{"timestamp":"2026-02-20T14:00:00Z","x":"\udcff"}]'),
        ],
    )
    def test_misleading_bodies_have_the_projection_of_the_contract(self, body: bytes) -> None:
        seen = SeenCandles()
        assert_agree(seen, text(ONE))
        assert_agree(seen, body, text(ONE), body)
        assert_agree(SeenCandles(), body)

    def test_candles_with_duplicate_members_are_not_remembered(self) -> None:
        """Their reading requires valid Unicode in the whole body, which a reading of the rest alone would not check."""
        repeated = f'[{candle(14)},{{"timestamp":1,"timestamp":"2026-02-20T16:00:00Z"}}]'
        assert_agree(SeenCandles(), text(repeated), text(repeated, behind=',"x":"\udcff"'))

    @given(
        st.lists(
            st.sampled_from(
                [ONE, OTHER, "[]", '"candles":', ",", "{", "}", '"x":', '"', "\\", '"agentId":"a"', "5", " "]
            ),
            max_size=12,
        ).map("".join)
    )
    def test_random_bodies_of_known_pieces_have_the_projection_of_the_contract(self, middle: str) -> None:
        seen = SeenCandles()
        assert_agree(seen, text(ONE), text(OTHER))
        assert_agree(seen, text(ONE, behind=middle), text(ONE, before=middle), f"{{{middle}}}".encode())


class TestMemory:
    """The number and size of remembered candles are bounded, and the latest are kept."""

    def test_the_latest_candles_are_remembered(self, make_body: MakeBody) -> None:
        seen = SeenCandles(most=2)
        bodies = [make_body(count=20, closes={"BTC": [float(price)] * 20}) for price in range(1, 6)]
        for body in bodies:
            assert_agree(seen, body)
        remembered = [candles for candles in seen._seen.values() if candles is not None]
        assert [body for body in bodies if any(one.text in body for one in remembered)] == bodies[-2:]

    def test_candles_seen_once_are_not_kept(self, make_body: MakeBody) -> None:
        seen = SeenCandles()
        seen.projection(make_body(count=100))
        assert set(seen._seen.values()) == {None}
        assert sum(map(sys.getsizeof, seen._seen)) < 1_000

    def test_more_than_64_kib_of_candles_are_not_kept(self, make_body: MakeBody) -> None:
        seen, body = SeenCandles(), make_body(count=500)
        assert len(msgspec.json.encode(msgspec.json.decode(body)["candles"])) > 65_536
        assert_agree(seen, body)
        assert set(seen._seen.values()) == {None}
