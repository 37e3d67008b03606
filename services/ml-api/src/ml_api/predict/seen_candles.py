"""
Remembers the newest minute of candles that were sent before, so that a replay need not parse them again.

A retry, and every agent that is asked at the same moment, sends the same candles, byte for byte: more than 30 kB, and
a few hundred other bytes that differ. `SeenCandles.projection` compares those bytes, and parses only the rest. It gives
the result of `contract.projection`, and calls that function in every case of doubt, and for every refusal.
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

_MAX_BYTES = 65_536  # of candles that are remembered; twice the usual size
# The first bytes of the candles, by which they are looked up; they contain prices of the market.
_BEGIN_BYTES = 128
_find_candles = re.compile(rb'"candles"[ \t\r\n]*:[ \t\r\n]*(?=\[)').search
_FIND_WITHIN = 4_096  # bytes; if the candles begin later in the body, it is parsed as a whole

# A random value, which no client can send. It replaces the candles while the rest of the body is parsed.
_PLACEHOLDER = f'"{token_hex(16)}"'.encode()


class _Around(Struct, rename="camel", frozen=True, gc=False):
    """The members of a body whose candles are not parsed."""

    agent_id: Name
    candles: Raw


class _Candles(NamedTuple):
    text: bytes
    newest_minute: int | None


_read_around = msgspec.json.Decoder(_Around).decode
_NOT_READ = (msgspec.MsgspecError, ValueError, RecursionError)


class SeenCandles:
    """
    The candles that were recently sent more than once.

    Args:
        most: How many texts to remember, of at most 64 KiB each; the least recently sent ones are dropped first.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        # By their first bytes, the latest last. None: sent only once so far, or too large or odd to be remembered.
        self._seen: dict[bytes, _Candles | None] = {}

    def projection(self, body: bytes) -> tuple[str, int | None]:
        """Return or raise what `contract.projection` does for *body*."""
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
    Return the agent of a body whose candles were replaced by the placeholder; None if the whole body must be parsed.

    If the placeholder is parsed as the value of the member `candles`, then the bytes that it replaced are the value of
    that member. If not, those bytes were a part of another value, or of a `candles` that is repeated later.
    """
    try:
        read = _read_around(around)
    except _NOT_READ:
        return None
    return read.agent_id if bytes(read.candles) == _PLACEHOLDER else None


def _remembered(body: bytes) -> _Candles | None:
    """Return the candles of *body* if they can be parsed without `plain_body` and are not too large, else None."""
    try:
        text = bytes(_read_around(body).candles)
        if len(text) <= _MAX_BYTES:
            return _Candles(text, newest_minute(text))
    except _NOT_READ:
        pass
    return None
