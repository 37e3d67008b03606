"""
The request of ``POST /predict``: its schema and its parser.

msgspec parses the body by the types below, which the OpenAPI document shows too. `parse_request` reads everything.
Money and closes keep every digit: ``0.10`` becomes ``Decimal("0.10")`` and never a float. `projection` reads only two
members, by the same types; a replay needs no more.

Names are camelCase; snake_case is accepted too. Unknown members are ignored, and of a repeated member the last one
counts. The types accept only known camelCase names. A body that they do not accept is first rewritten to that form
(`ml_api.predict.plain_body`), and then parsed by the same types, which also find its errors. Parsing such a body costs
about three times as much.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, TypedDict, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Meta, Struct

from ml_api.http.problems import Problem
from ml_api.predict.plain_body import MAX_DEPTH, NotJson, depth, plain_body
from ml_api.predict.types import (
    Close,
    Digits,
    Instant,
    Money,
    Name,
    Price,
    SchemaVersion,
    Symbol,
    close_text,
    to_instant,
    to_money,
)
from ml_api.trading.types import CandleSeries

__all__ = [
    "SCHEMA_VERSION",
    "Candle",
    "DecisionRequest",
    "ErrorItem",
    "MalformedBody",
    "Portfolio",
    "Position",
    "PredictRequest",
    "newest_minute",
    "parse_request",
    "projection",
]

SCHEMA_VERSION = "1.0"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")


class ErrorItem(TypedDict):
    """One schema violation: its kind, its place, and a message; never the value."""

    type: str
    loc: list[str | int]
    msg: str


class MalformedBody(Problem, ValueError):
    """The body is not a valid request; the detail lists the first violation, without any value of the body."""

    def __init__(self, violation: ErrorItem, *, status: int = 422, slug: str = "malformed-body") -> None:
        super().__init__(status, slug, (violation,))


class _Wire(Struct, rename="camel", frozen=True, gc=False, forbid_unknown_fields=True):
    """Base class of the objects in a request. Excluded from garbage collection, because they cannot be in a cycle."""


class Candle(_Wire, frozen=True):
    """One bar of one asset. The order of the list does not matter."""

    symbol: Symbol
    timestamp: Instant
    open: Price
    high: Price
    low: Price
    close: Close
    volume: Price


class Position(_Wire, frozen=True):
    """The agent's holding of one asset."""

    symbol: Symbol
    quantity: Money
    average_price: Money


class Portfolio(_Wire, frozen=True):
    """The agent's money, in one currency."""

    cash: Money
    total_value: Money
    positions: list[Position] = []


class PredictRequest(_Wire, frozen=True, kw_only=True):
    """A trading agent's portfolio and market candles."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    request_id: Annotated[Name | None, Meta(description="Returned in the answer; default a new UUID4.")] = (
        None
    )
    agent_id: Name
    portfolio: Portfolio
    candles: list[Candle]
    instructions: str | None = ""


class _CandleTime(_Wire, frozen=True, forbid_unknown_fields=False):
    timestamp: Instant


class _Projection(_Wire, frozen=True, forbid_unknown_fields=False):
    agent_id: Name
    candles: list[_CandleTime]


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """
    A valid request.

    Attributes:
        request_id: The caller's, or a new UUID4.
        series: The candles of each symbol, in the order of the request.
    """

    request_id: str
    agent_id: str
    portfolio: Portfolio
    series: Mapping[str, CandleSeries]


def parse_request(body: bytes) -> DecisionRequest:
    """
    Parse a request; money and closes keep every digit.

    Raises:
        MalformedBody: 422 for a body that is not UTF-8, not JSON (``NaN`` and ``Infinity`` are not JSON), or not of
            this schema; 400 if it nests deeper than `MAX_DEPTH`; a request needs four levels.

    Cost: linear in the size of the body.
    """
    sent = _read(_request, body)
    by_symbol: defaultdict[str, list[Candle]] = defaultdict(list)
    for candle in sent.candles:
        by_symbol[candle.symbol].append(candle)
    try:
        series = {symbol: _series(candles) for symbol, candles in by_symbol.items()}
    except _UNREADABLE:
        raise _first_violation(sent.candles, _TIMESTAMP, _CLOSE) from None
    return DecisionRequest(sent.request_id or str(uuid4()), sent.agent_id, sent.portfolio, series)


def projection(body: bytes) -> tuple[str, int | None]:
    """
    Reduce a body to the meaning of the client's idempotency key: the agent, and the minute of the newest candle.

    Nothing else may count, because two requests with the same key may have another requestId and portfolio.

    Returns:
        The agent's id, and the newest candle's time in whole minutes since 1970 UTC; None if there are no candles.
    Raises:
        MalformedBody: A ValueError. It is never raised for a body that `parse_request` accepts. Other members are not
            checked here, so this accepts some bodies that `parse_request` refuses.
    """
    short = _read(_short, body)
    return short.agent_id, _newest_minute(short.candles)


def newest_minute(candles: bytes) -> int | None:
    """
    Return the minute of `projection`, from the value of the member `candles` only.

    Raises:
        ValueError, msgspec.MsgspecError: It is not a valid list, or must first be rewritten by `plain_body`.
    """
    return _newest_minute(_candle_times(candles))


_request = msgspec.json.Decoder(PredictRequest, dec_hook=to_money, float_hook=Digits).decode
_short = msgspec.json.Decoder(_Projection).decode
_candle_times = msgspec.json.Decoder(list[_CandleTime]).decode
_prices = msgspec.json.Decoder(list[Price]).decode
_UNREADABLE = (ValueError, msgspec.MsgspecError)  # before msgspec 0.21, its errors are no ValueErrors


def _read(decode: Callable[[bytes], T], body: bytes) -> T:
    """Decode *body* by *decode*; if that fails, rewrite it by `plain_body` and decode again."""
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    if depth(body) > MAX_DEPTH:
        message = f"The body nests deeper than {MAX_DEPTH} levels; send fewer"
        too_deep: ErrorItem = {"type": "json_invalid", "loc": ["body"], "msg": message}
        raise MalformedBody(too_deep, status=400, slug="nested-too-deep")
    try:
        return decode(plain_body(body, PredictRequest))
    except NotJson as error:
        invalid = f"Invalid JSON: {error}"
        raise MalformedBody({"type": "json_invalid", "loc": ["body"], "msg": invalid}) from None
    except msgspec.ValidationError as error:
        raise _not_schema(str(error)) from None


def _series(candles: Sequence[Candle]) -> CandleSeries:
    return CandleSeries(
        [to_instant(candle.timestamp) for candle in candles],
        _closes(candles),
        [float(candle.volume) for candle in candles],
        lambda position: Decimal(close_text(candles[position].close)),
    )


def _closes(candles: Sequence[Candle]) -> list[float]:
    try:
        return list(map(float, _prices(b"[%b]" % b",".join([candle.close for candle in candles]))))
    except msgspec.MsgspecError:  # one of them is beyond float64, at best
        return [float(close_text(candle.close)) for candle in candles]


def _newest_minute(candles: Sequence[_CandleTime]) -> int | None:
    try:
        # The candles of all assets have the same times.
        newest = max(map(to_instant, {candle.timestamp for candle in candles}), default=None)
    except ValueError:
        raise _first_violation(candles, _TIMESTAMP) from None
    return (newest - _EPOCH) // timedelta(minutes=1) if newest is not None else None


_TIMESTAMP: tuple[str, Callable[[Any], object]] = "timestamp", lambda candle: to_instant(candle.timestamp)
_CLOSE: tuple[str, Callable[[Any], object]] = "close", lambda candle: close_text(candle.close)


def _first_violation(candles: Sequence[Any], *members: tuple[str, Callable[[Any], object]]) -> MalformedBody:
    """Name the first candle with a member that cannot be read; there is one."""
    for name, read in members:
        for place, candle in enumerate(candles):
            try:
                read(candle)
            except _UNREADABLE:
                return MalformedBody(_violation(["candles", place, name], ""))
    raise AssertionError("every candle can be read")


def _not_schema(message: str) -> MalformedBody:
    """Convert msgspec's error message, which names only types, places and members of the schema."""
    reason, _, path = message.partition(" - at `$")
    place = [int(index) if index else name for name, index in _STEP.findall(path)]
    if missing := _MISSING.fullmatch(reason):
        return MalformedBody(
            {"type": "missing", "loc": ["body", *place, missing[1]], "msg": "Field required"}
        )
    return MalformedBody(_violation(place, reason))


def _violation(place: list[str | int], reason: str) -> ErrorItem:
    name = place[-1] if place else ""
    kind = "schema"
    if name in _NUMBERS:
        kind, reason = (
            "decimal",
            "Input should be a finite decimal number of a sensible size, or one as a string",
        )
    elif name == "timestamp":
        kind, reason = (
            "datetime",
            "Input should be an ISO 8601 date and time such as 2026-02-20T14:00:00Z",
        )
    return {"type": kind, "loc": ["body", *place], "msg": reason}


_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_NUMBERS = frozenset(
    {"open", "high", "low", "close", "volume", "cash", "totalValue", "quantity", "averagePrice"}
)
