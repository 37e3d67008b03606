"""
The request of ``POST /predict``: what it may say, and how it is read.

There is one reader: pydantic over jiter, its own JSON parser. `parse_request` reads everything and keeps the digits of
every number, so that ``0.10`` in money is ``Decimal("0.10")`` and never passes through a float. `projection` reads two
members by the same types and skips the rest; that is all a replay needs. Both refuse the same syntax at the same depth.

Names are camelCase on the wire, snake_case is accepted too, unknown members are ignored. The schemas that OpenAPI
shows come from these classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import jiter
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from ml_api.predict.types import Moment, Money, Name, Price, Symbol, to_decimal, to_floats
from ml_api.trading.candle_series import CandleSeries

__all__ = [
    "SCHEMA_VERSION",
    "Candle",
    "ErrorItem",
    "MalformedBody",
    "NestedTooDeep",
    "Portfolio",
    "Position",
    "PredictRequest",
    "parse_request",
    "projection",
]

SCHEMA_VERSION = "1.0"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ErrorItem(TypedDict):
    """One schema violation: what kind, where, and how to say it. Never what was sent."""

    type: str
    loc: list[str | int]
    msg: str


class MalformedBody(ValueError):
    """
    The body is not a request of this contract. *errors* says where, without echoing any of it.

    Few errors are reported, whatever the body's size: a list stops at its first bad element.
    """

    status = 422
    slug = "malformed-body"

    def __init__(self, errors: Iterable[ErrorItem]) -> None:
        self.errors = tuple(errors)
        where = ".".join(map(str, self.errors[0]["loc"]))
        super().__init__(f"{len(self.errors)} violation(s) of the request schema, the first at {where}")

    def __reduce__(self) -> tuple[type[MalformedBody], tuple[tuple[ErrorItem, ...]]]:
        return type(self), (self.errors,)


class NestedTooDeep(MalformedBody):
    """The body nests deeper than the parser follows (about 200 levels; a request needs four)."""

    status = 400
    slug = "nested-too-deep"


class _Wire(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
    )


class Candle(TypedDict):
    """One bar of one asset. Order in the list does not matter. A dict, because 200 of them come per request."""

    symbol: Symbol
    timestamp: Moment
    open: Price
    high: Price
    low: Price
    close: Price
    volume: Price


class Position(_Wire):
    """What the agent holds of one asset."""

    symbol: Symbol
    quantity: Money
    average_price: Money


class Portfolio(_Wire):
    """The agent's money, in one currency."""

    cash: Money
    total_value: Money
    positions: Annotated[list[Position], FailFast()] = []


def _fresh_id() -> str:
    """A requestId for a request that brought none."""
    return str(uuid4())


def _absent_if_null(value: object) -> object:
    return _fresh_id() if value is None else value


def _empty_if_null(value: object) -> object:
    return "" if value is None else value


class PredictRequest(_Wire):
    """What a trading agent knows when it asks for a decision."""

    schema_version: Annotated[str, Field(pattern=r"^1(\.[0-9]{1,4})?$")] = SCHEMA_VERSION
    request_id: Annotated[
        Name,
        BeforeValidator(_absent_if_null),
        WithJsonSchema(
            {
                "type": ["string", "null"],
                "minLength": 1,
                "maxLength": 128,
                "description": "Echoed; a new UUID4 where absent or null.",
            }
        ),
    ] = Field(default_factory=_fresh_id)
    agent_id: Name
    portfolio: Portfolio
    candles: Annotated[list[Candle], FailFast()]
    instructions: Annotated[
        str, BeforeValidator(_empty_if_null), WithJsonSchema({"type": ["string", "null"]})
    ] = ""

    def projection(self) -> tuple[str, int | None]:
        """The two members that make two requests the same decision; see the function of this name."""
        return _project(self.agent_id, self.candles)

    def series(self, asset: str) -> CandleSeries:
        """The candles of one asset, in the order in which they came."""
        candles = [candle for candle in self.candles if candle["symbol"] == asset]
        return CandleSeries(
            [candle["timestamp"] for candle in candles],
            to_floats([candle["close"] for candle in candles]),
            to_floats([candle["volume"] for candle in candles]),
            lambda position: to_decimal(candles[position]["close"]),
        )


class _CandleTime(TypedDict):
    timestamp: Moment


class _Projection(_Wire):
    agent_id: Name
    candles: Annotated[list[_CandleTime], FailFast()]


def parse_request(body: bytes) -> PredictRequest:
    """
    Read one request; numbers keep every digit.

    Raises:
        NestedTooDeep: status 400.
        MalformedBody: status 422; not UTF-8, not JSON (``NaN`` and ``Infinity`` are not JSON), or not this schema.

    Cost: linear in the body.
    """
    try:
        document = jiter.from_json(body, float_mode="lossless-float", allow_inf_nan=False)
    except ValueError as error:
        raise _not_json(str(error)) from None
    try:
        return PredictRequest.model_validate(document)
    except ValidationError as error:
        raise _not_schema(error) from None


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
    try:
        short = _Projection.model_validate_json(body)
    except ValidationError as error:
        raise _not_schema(error) from None
    return _project(short.agent_id, short.candles)


def _project(agent_id: str, candles: list[Any]) -> tuple[str, int | None]:
    if not candles:
        return agent_id, None
    newest: datetime = max([candle["timestamp"] for candle in candles])
    return agent_id, (newest - _EPOCH) // timedelta(minutes=1)


def _not_json(message: str) -> MalformedBody:
    kind = NestedTooDeep if message.startswith("recursion limit exceeded") else MalformedBody
    return kind([{"type": "json_invalid", "loc": ["body"], "msg": f"Invalid JSON: {message}"}])


def _not_schema(error: ValidationError) -> MalformedBody:
    items = error.errors(include_url=False, include_context=False, include_input=False)
    if items[0]["type"] == "json_invalid":
        return _not_json(items[0]["msg"].removeprefix("Invalid JSON: "))
    return MalformedBody(
        {"type": item["type"], "loc": ["body", *item["loc"]], "msg": item["msg"]} for item in items
    )
