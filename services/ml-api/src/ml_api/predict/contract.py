"""
The request of ``POST /predict``: what it may say, and how it is read.

There is one reader: msgspec, by the types below, which the OpenAPI document shows too. `parse_request` reads
everything; money and closes keep every digit, so that ``0.10`` is ``Decimal("0.10")`` and never passes through a float.
`projection` reads two members by the same types and skips the rest; that is all a replay needs.

Names are camelCase on the wire, snake_case is accepted too, unknown members are ignored, and of a repeated member the
last one counts. The types read known camelCase names that are not repeated wrongly. Any other body is first written
anew in that form (`ml_api.predict.plain_body`) and then read by the same types; a body in error is found to be one
there. So such requests cost about three times the reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, TypedDict, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Meta, Struct

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
    "NestedTooDeep",
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
    """One schema violation: what kind, where, and how to say it. Never what was sent."""

    type: str
    loc: list[str | int]
    msg: str


class MalformedBody(ValueError):
    """
    The body is not a request of this contract. *errors* says where, without echoing any of it.

    Reading stops at the first violation, so there is one error, whatever the body's size.
    """

    status = 422
    slug = "malformed-body"

    def __init__(self, errors: Iterable[ErrorItem]) -> None:
        self.errors = tuple(errors)
        where = ".".join(map(str, self.errors[0]["loc"]))
        super().__init__(f"the request schema is violated at {where}")

    def __reduce__(self) -> tuple[type[MalformedBody], tuple[tuple[ErrorItem, ...]]]:
        return type(self), (self.errors,)


class NestedTooDeep(MalformedBody):
    """The body nests deeper than `MAX_DEPTH`; a request needs four levels."""

    status = 400
    slug = "nested-too-deep"


class _Wire(Struct, rename="camel", frozen=True, gc=False, forbid_unknown_fields=True):
    """The base of the wire's objects. The garbage collector need not look at them: none can be in a cycle."""


class Candle(_Wire, frozen=True):
    """One bar of one asset. Order in the list does not matter."""

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
    request_id: Annotated[Name | None, Meta(description="Echoed; a new UUID4 where absent or null.")] = None
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
    A request that was read and found right.

    Attributes:
        request_id: The caller's, or a new UUID4.
        times: Of each candle, when it began.
        closes: Of each candle, the close as float64; infinite where it is too large.
    """

    request_id: str
    agent_id: str
    portfolio: Portfolio
    instructions: str
    candles: Sequence[Candle]
    times: Sequence[datetime]
    closes: Sequence[float]

    def projection(self) -> tuple[str, int | None]:
        """The two members that make two requests the same decision; see the function of this name."""
        return self.agent_id, _newest_minute(self.times)

    def series(self, asset: str) -> CandleSeries:
        """The candles of one asset, in the order in which they came."""
        places = [place for place, candle in enumerate(self.candles) if candle.symbol == asset]
        candles = self.candles
        return CandleSeries(
            [self.times[place] for place in places],
            [self.closes[place] for place in places],
            [float(candles[place].volume) for place in places],
            lambda position: Decimal(close_text(candles[places[position]].close)),
        )


def parse_request(body: bytes) -> DecisionRequest:
    """
    Read one request; money and closes keep every digit.

    Raises:
        NestedTooDeep: status 400.
        MalformedBody: status 422; not UTF-8, not JSON (``NaN`` and ``Infinity`` are not JSON), or not this schema.

    Cost: linear in the body.
    """
    sent = _read(_request, body)
    return DecisionRequest(
        sent.request_id or str(uuid4()),
        sent.agent_id,
        sent.portfolio,
        sent.instructions or "",
        sent.candles,
        _times(sent.candles),
        _closes(sent.candles),
    )


def projection(body: bytes) -> tuple[str, int | None]:
    """
    Reduce a body to what an idempotency key of this client stands for: who asks, and about which newest minute.

    Two decision cycles may share one key while requestId and portfolio differ, so nothing else may count.

    Returns:
        The agent's id, and the newest candle's time in whole minutes since 1970 UTC; None where candles is empty.
    Raises:
        MalformedBody: A ValueError. Never for a body that `parse_request` accepts, and then the two agree;
            but other members are not looked at here, so some bodies pass that `parse_request` refuses.
    """
    short = _read(_short, body)
    return short.agent_id, _newest_minute(_times(short.candles))


def newest_minute(candles: bytes) -> int | None:
    """
    The minute of `projection`, of the value of the member candles by itself.

    Raises:
        ValueError, msgspec.MsgspecError: It is not such a list, or one that only a body in the plain form gives.
    """
    return _newest_minute(_times(_candle_times(candles)))


def _dec_hook(_: type, sent: Any) -> Money:
    return to_money(sent)


_request = msgspec.json.Decoder(PredictRequest, dec_hook=_dec_hook, float_hook=Digits).decode
_short = msgspec.json.Decoder(_Projection).decode
_candle_times = msgspec.json.Decoder(list[_CandleTime]).decode
_prices = msgspec.json.Decoder(list[Price]).decode


def _read(decode: Callable[[bytes], T], body: bytes) -> T:
    """The body as *decode* reads it: at once, or where that fails once it is in the one plain form."""
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    if depth(body) > MAX_DEPTH:
        message = f"The body nests deeper than {MAX_DEPTH} levels"
        raise NestedTooDeep([{"type": "json_invalid", "loc": ["body"], "msg": message}])
    try:
        return decode(plain_body(body, PredictRequest))
    except NotJson as error:
        invalid = f"Invalid JSON: {error}"
        raise MalformedBody([{"type": "json_invalid", "loc": ["body"], "msg": invalid}]) from None
    except msgspec.ValidationError as error:
        raise _not_schema(str(error)) from None


def _times(candles: Sequence[Candle] | Sequence[_CandleTime]) -> list[datetime]:
    try:
        return [to_instant(candle.timestamp) for candle in candles]
    except ValueError:
        return _each(candles, lambda candle: to_instant(candle.timestamp), "timestamp")


def _closes(candles: Sequence[Candle]) -> list[float]:
    try:
        return list(map(float, _prices(b"[%b]" % b",".join([candle.close for candle in candles]))))
    except msgspec.MsgspecError:  # one of them is beyond float64, at best
        return _each(candles, lambda candle: float(close_text(candle.close)), "close")


def _each(candles: Sequence[Any], read: Any, name: str) -> list[Any]:
    """Applies *read* to each candle; MalformedBody names the first that it cannot read."""
    values = []
    for place, candle in enumerate(candles):
        try:
            values.append(read(candle))
        except ValueError:
            raise MalformedBody([_violation(["candles", place, name], "")]) from None
    return values


def _newest_minute(times: Sequence[datetime]) -> int | None:
    return (max(times) - _EPOCH) // timedelta(minutes=1) if times else None


def _not_schema(message: str) -> MalformedBody:
    """The one violation that msgspec reports; its texts name types, places and members of the schema alone."""
    reason, _, path = message.partition(" - at `$")
    place = [int(index) if index else name for name, index in _STEP.findall(path)]
    if missing := _MISSING.fullmatch(reason):
        item: ErrorItem = {"type": "missing", "loc": ["body", *place, missing[1]], "msg": "Field required"}
        return MalformedBody([item])
    return MalformedBody([_violation(place, reason)])


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
