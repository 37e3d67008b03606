"""
A quick reading of the body that the client sends all day; whatever else a body may be, the contract reads it.

`ml_api.contract` says what a request is, and reads every one digit for digit. Of most digits a decision needs the
nearest float64 alone, and that takes a fifth of the time. So bodies of one shape are read here: ASCII, camelCase, no
unknown member, numbers that are numbers. What comes of it is exactly what the contract would give; for any other body
the contract is asked, which also has all the refusals to itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

from ml_api import contract
from ml_api.bars import Bars
from ml_api.contract import MalformedBody, Portfolio, PredictRequest
from ml_api.fields import parse_instant

__all__ = ["QuickRequest", "projection", "read_request"]


def read_request(body: bytes) -> QuickRequest | PredictRequest:
    """
    Read one request, the quick way if that will do.

    Raises:
        MalformedBody: As `contract.parse_request`, which gives it.
    """
    reading = _read(body)
    if reading is None or not _numbers_are_small(reading):
        return contract.parse_request(body)
    try:
        portfolio = contract.parse_portfolio(bytes(reading.texts.portfolio))
    except MalformedBody:
        return contract.parse_request(body)  # its errors say where in the whole body they are
    return QuickRequest(reading.sent.request_id or contract.fresh_id(), portfolio, reading)


def projection(body: bytes) -> tuple[str, int | None]:
    """
    What `contract.projection` gives, the quick way if that will do.

    As there, only bodies that are a request have to give the right one: of what else stands in a body, this looks
    past what is nested too deeply or is half a character.

    Raises:
        MalformedBody: As `contract.projection`, which gives it.
    """
    if body.isascii():
        try:
            sent = _asks(body)
            newest = max(map(_microseconds, {candle.timestamp for candle in sent.candles}), default=None)
        except _NOT_QUICK:
            pass
        else:
            return sent.agent_id, None if newest is None else newest // _MINUTE
    return contract.projection(body)


@dataclass(frozen=True, slots=True)
class QuickRequest:
    """A `contract.PredictRequest`, as far as a decision needs it."""

    request_id: str
    portfolio: Portfolio
    _reading: _Reading

    @property
    def agent_id(self) -> str:
        """Who asks."""
        return self._reading.sent.agent_id

    def bars(self, asset: str) -> Bars:
        """The candles of one asset."""
        reading = self._reading
        places = [place for place, candle in enumerate(reading.sent.candles) if candle.symbol == asset]
        candles = [reading.sent.candles[place] for place in places]
        return Bars(
            [reading.moments[candle.timestamp] for candle in candles],
            [candle.close for candle in candles],
            [candle.volume for candle in candles],
            lambda position: _close(reading.texts.candles[places[position]]).close,
        )


class _Candle(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    symbol: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    timestamp: str
    open: float
    high: float
    low: float
    close: float
    volume: float


class _Position(msgspec.Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    symbol: str
    quantity: float
    average_price: float


class _Portfolio(msgspec.Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    cash: float
    total_value: float
    positions: list[_Position] = []


class _Sent(msgspec.Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    agent_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    portfolio: _Portfolio  # its shape; money is read from its text
    candles: list[_Candle]
    schema_version: Literal["1.0"] = "1.0"
    request_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    instructions: str | None = None


class _Texts(msgspec.Struct, gc=False):
    portfolio: msgspec.Raw
    candles: list[msgspec.Raw]


class _Close(msgspec.Struct, gc=False):
    close: Decimal


class _Time(msgspec.Struct, gc=False):
    timestamp: str


class _Asks(msgspec.Struct, rename="camel", gc=False):
    agent_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    candles: list[_Time]


_sent = msgspec.json.Decoder(_Sent).decode
_texts = msgspec.json.Decoder(_Texts).decode
_close = msgspec.json.Decoder(_Close).decode
_asks = msgspec.json.Decoder(_Asks).decode
_NOT_QUICK = (msgspec.MsgspecError, ValueError)  # the first is not always one of the second


class _Reading:
    """
    One body.

    Attributes:
        moments: Its candles' timestamps, each once, and what they mean in microseconds since 1970 UTC.
    """

    __slots__ = ("_texts", "body", "moments", "sent")

    def __init__(self, body: bytes, sent: _Sent, moments: dict[str, int]) -> None:
        self.body, self.sent, self.moments = body, sent, moments
        self._texts: _Texts | None = None

    @property
    def texts(self) -> _Texts:
        """The same as it was sent. Costs half as much again, the first time."""
        if self._texts is None:
            self._texts = _texts(self.body)
        return self._texts


def _read(body: bytes) -> _Reading | None:
    """
    None where the contract must read.

    A fingerprint and its handler each read anew: a reading kept for all that time, with what it fills of the
    processor's caches and of memory, was measured to cost more than a second one.
    """
    if not body.isascii():
        return None  # the client escapes what is not; UTF-8 is the contract's to judge
    try:
        sent = _sent(body)
        moments = {text: _microseconds(text) for text in {candle.timestamp for candle in sent.candles}}
    except _NOT_QUICK:
        return None
    return _Reading(body, sent, moments)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = 60_000_000  # microseconds


# Assets share their candle times, and so do successive requests.
@lru_cache(maxsize=4096)
def _microseconds(text: str) -> int:
    return (parse_instant(text) - _EPOCH) // timedelta(microseconds=1)


# Written with either letter; two searches for one byte are quicker than one for a class.
_LONG_EXPONENTS = (re.compile(rb"e[-+]?[0-9]{9}").search, re.compile(rb"E[-+]?[0-9]{9}").search)


def _numbers_are_small(reading: _Reading) -> bool:
    """
    Whether no exponent is beyond what a decimal can have.

    As a float64 such a number is infinite, which is refused above, or 0; so one is looked for where there is a 0.
    """
    return all(
        candle.open and candle.high and candle.low and candle.close and candle.volume
        for candle in reading.sent.candles
    ) or not any(search(reading.body) for search in _LONG_EXPONENTS)
