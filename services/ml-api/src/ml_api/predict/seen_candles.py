"""
Remembers the newest minute of candles that were sent before, so that a replay need not read them again.

A retry, and every agent that is asked at the same moment, sends the same candles, byte for byte: thirty-odd kilobytes
beside a few hundred bytes that differ. `SeenCandles.projection` compares those bytes and reads only what is around
them. It says what `contract.projection` says, and leaves to that whatever it is not sure of, every refusal included.
"""

from __future__ import annotations

import re
from secrets import token_hex
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from ml_api.predict.contract import newest_minute, projection
from ml_api.predict.types import Name

__all__ = ["SeenCandles"]

_MAX_BYTES = 65_536  # of candles that are remembered; twice the usual
_BEGIN_BYTES = (
    128  # by which candles are looked up: the first of the list, whose prices differ from market to market
)
_find_candles = re.compile(rb'"candles"[ \t\r\n]*:[ \t\r\n]*(?=\[)').search
_FIND_WITHIN = 4_096  # bytes; clients that send the candles behind much else are read in full

# A value that no client can send by chance or on purpose. It stands in the place of the candles while the rest is read.
_PLACEHOLDER = f'"{token_hex(16)}"'.encode()


class _Around(Struct, rename="camel", frozen=True, gc=False):
    """The body without what its candles say."""

    agent_id: Name
    candles: Raw


class _Candles(NamedTuple):
    text: bytes
    newest_minute: int | None


_read_around = msgspec.json.Decoder(_Around).decode
_NOT_READ = (msgspec.MsgspecError, ValueError, RecursionError)


class SeenCandles:
    """
    The candles that came more than once of late.

    Args:
        most: How many texts are remembered, of 64 KiB at most each; those that were not sent for longest go first.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        # By how they begin, the latest last; None for those that came once, of which nothing else is kept.
        self._seen: dict[bytes, _Candles | None] = {}

    def projection(self, body: bytes) -> tuple[str, int | None]:
        """`contract.projection` of *body*: what it returns, and what it raises."""
        found = _find_candles(body, 0, _FIND_WITHIN)
        if found is None:
            return projection(body)
        start = found.end()
        begin = body[start : start + _BEGIN_BYTES]
        known = begin in self._seen
        candles = self._seen.pop(begin, None)
        self._seen[begin] = candles
        if candles is not None and body.startswith(candles.text, start):
            agent = _agent(body[:start] + _PLACEHOLDER + body[start + len(candles.text) :])
            if agent is not None:
                return agent, candles.newest_minute
        if known:
            self._seen[begin] = _remembered(body)
        elif len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        return projection(body)


def _agent(around: bytes) -> str | None:
    """
    The agent of a body whose candles were replaced by the placeholder; None where only the whole body can tell.

    A placeholder that is read as the value of the member `candles` stands where a value stands, so the candles in its
    place are that value. Else what looked like candles was a part of something else, or not the last of that name.
    """
    try:
        read = _read_around(around)
    except _NOT_READ:
        return None
    return read.agent_id if bytes(read.candles) == _PLACEHOLDER else None


def _remembered(body: bytes) -> _Candles | None:
    """The candles of *body*, if they can be read by themselves, without the contract's plain form of a whole body."""
    try:
        text = bytes(_read_around(body).candles)
        if len(text) <= _MAX_BYTES:
            return _Candles(text, newest_minute(text))
    except _NOT_READ:
        pass
    return None
