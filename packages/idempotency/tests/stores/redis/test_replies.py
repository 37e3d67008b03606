"""Parsing Redis replies, wherever the network splits them, and refusing invalid ones."""

from __future__ import annotations

import resource
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as failures

from idempotency.stores.redis.wire.replies import Replies, Reply

VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
).filter(lambda value: depth(value) <= 4)


def depth(value: Reply) -> int:
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def written(value: Reply) -> bytes:
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n%b" % (len(value), b"".join(map(written, value)))


def split(data: bytes, positions: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(position % (len(data) + 1) for position in positions)})
    return [data[start:end] for start, end in pairwise(ends)]


@given(
    values=st.lists(VALUES, min_size=1, max_size=5), positions=st.lists(st.integers(0, 10_000), max_size=12)
)
def test_replies_are_the_same_wherever_the_network_splits_them(
    values: list[Reply], positions: list[int]
) -> None:
    replies = Replies()
    seen: list[Reply] = []
    for piece in split(b"".join(map(written, values)), positions):
        seen += replies.feed(piece)
    assert seen == values


@given(data=st.binary(max_size=300), positions=st.lists(st.integers(0, 300), max_size=5))
def test_any_input_is_parsed_or_refused_with_invalid_response(data: bytes, positions: list[int]) -> None:
    replies = Replies()
    try:
        for piece in split(data, positions):
            assert isinstance(replies.feed(piece), list)
    except failures.InvalidResponse:
        pass


def test_a_reply_is_returned_with_its_last_byte_and_not_before() -> None:
    replies = Replies()
    data = written([b"completed", b"x" * 50, 1, None])
    for byte in data[:-1]:
        assert replies.feed(bytes([byte])) == []
    assert replies.feed(data[-1:]) == [[b"completed", b"x" * 50, 1, None]]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NOSCRIPT No matching script.", failures.NoScriptError),
        ("READONLY You can't write against a read only replica.", failures.ReadOnlyError),
        ("OOM command not allowed", failures.ResponseError),
        ("MOVED", failures.ResponseError),
        ("MOVED 7 nowhere", failures.ResponseError),
        ("", failures.ResponseError),
    ],
)
def test_an_error_reply_is_a_value_and_the_next_reply_is_parsed_too(text: str, kind: type[Exception]) -> None:
    first, second = Replies().feed(f"-{text}\r\n:1\r\n".encode())
    assert type(first) is kind
    assert second == 1


def test_a_redirection_has_a_slot_and_an_address() -> None:
    moved, ask = Replies().feed(b"-MOVED 3999 127.0.0.1:6381\r\n-ASK 7 ::1:6382\r\n")
    assert isinstance(moved, failures.MovedError)
    assert (moved.slot_id, moved.host, moved.port) == (3999, "127.0.0.1", 6381)
    assert isinstance(ask, failures.AskError)
    assert (ask.host, ask.port) == ("::1", 6382)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$x\r\n",
        b":\r\n",
        b"$99999999999999999999\r\n",
        b"*4294967290\r\n",
        b"\r\n",
    ],
)
def test_an_invalid_reply_is_refused(data: bytes) -> None:
    with pytest.raises(failures.InvalidResponse):
        Replies().feed(data)


def test_no_memory_is_allocated_for_a_string_before_it_arrives() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replies = Replies()
    assert replies.feed(b"$4000000000\r\nx") == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024, "KiB"
