"""
The wire of ``POST /predict``: what a request may say, what an answer looks like, and nothing about trading.

One grammar reads every body: jiter, the JSON parser inside pydantic. The full reading (`parse_request`) asks it for
decimals, so that ``0.10`` stays ``Decimal("0.10")`` and never passes through a float; the short reading
(`projection`) lets it skip all but two members. Both refuse the same syntax at the same depth on every interpreter.

Names are camelCase on the wire, snake_case is accepted too, unknown members are ignored. The schemas that OpenAPI
shows come from these classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isfinite
from typing import Annotated, Any, Literal
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
    with_config,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from ml_api.predict.types import Moment, Money, Name, Price, Symbol
from ml_api.trading.candle_series import Bars

__all__ = [
    "SCHEMA_VERSION",
    "Candle",
    "Contribution",
    "ErrorItem",
    "MalformedBody",
    "NestedTooDeep",
    "Order",
    "Portfolio",
    "Position",
    "PredictRequest",
    "PredictResponse",
    "Signal",
    "encode_response",
    "fresh_id",
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


def fresh_id() -> str:
    """A requestId for a request that brought none."""
    return str(uuid4())


def _absent_if_null(value: object) -> object:
    return fresh_id() if value is None else value


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
    ] = Field(default_factory=fresh_id)
    agent_id: Name
    portfolio: Portfolio
    candles: Annotated[list[Candle], FailFast()]
    instructions: Annotated[
        str, BeforeValidator(_empty_if_null), WithJsonSchema({"type": ["string", "null"]})
    ] = ""

    def projection(self) -> tuple[str, int | None]:
        """The two members that make two requests the same decision; see the function of this name."""
        return _project(self.agent_id, self.candles)

    def bars(self, asset: str) -> Bars:
        """The candles of one asset."""
        candles = [candle for candle in self.candles if candle["symbol"] == asset]
        return Bars(
            [candle["timestamp"] for candle in candles],
            [float(candle["close"]) for candle in candles],
            [float(candle["volume"]) for candle in candles],
            lambda position: candles[position]["close"],
        )


class _CandleTime(TypedDict):
    timestamp: Moment


class _Projection(_Wire):
    agent_id: Name
    candles: Annotated[list[_CandleTime], FailFast()]


def _plain_number(places: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "number", "description": f"At most {places} decimal places, no exponent."})


# What an answer consists of. Plain dataclasses, since the service makes each of them and pydantic need not check its
# work: it reads the schema off them, where it says that all members are always there.
_ANSWER = ConfigDict(alias_generator=to_camel, json_schema_serialization_defaults_required=True)
_MAX_QUANTITY, _QUANTITY_PLACES = 1000, 8


@with_config(_ANSWER)
@dataclass(slots=True)
class Order:
    """One market order. limitPrice is always null."""

    asset_symbol: Literal["BTC", "ETH"]
    side: Literal["BUY", "SELL"]
    quantity: Annotated[
        Decimal,
        Field(gt=0, le=_MAX_QUANTITY, decimal_places=_QUANTITY_PLACES),
        _plain_number(_QUANTITY_PLACES),
    ]
    limit_price: None = None

    def __post_init__(self) -> None:
        """ValueError for a quantity that the client would drop or could not read."""
        quantity = self.quantity
        if not (
            quantity.is_finite()
            and 0 < quantity <= _MAX_QUANTITY
            and quantity == round(quantity, _QUANTITY_PLACES)
        ):
            raise ValueError(
                f"quantity must be above 0, at most {_MAX_QUANTITY} and of {_QUANTITY_PLACES} places"
            )


@with_config(_ANSWER)
@dataclass(frozen=True, slots=True)  # answers share it
class Signal:
    """One fixed rule held against one indicator of one asset."""

    feature: str
    value: Annotated[float, Field(allow_inf_nan=False, description="Rounded to 4 places.")]
    rule: str
    fired: bool
    contribution: Literal["bullish", "bearish", "neutral"]

    def __post_init__(self) -> None:
        """ValueError for a value that JSON has no number for."""
        if not isfinite(self.value):
            raise ValueError("a signal's value must be finite")


@with_config(_ANSWER)
@dataclass(slots=True)
class Contribution:
    """How far one indicator moved the model towards the action it chose for one asset; negative: away from it."""

    asset_symbol: Literal["BTC", "ETH"]
    feature: str
    log_odds: Annotated[float, Field(allow_inf_nan=False)]


def _optional_contributions(schema: dict[str, Any]) -> None:
    schema["required"] = [name for name in schema["required"] if name != "contributions"]


@with_config(ConfigDict(**_ANSWER, json_schema_extra=_optional_contributions))
@dataclass(slots=True, kw_only=True)
class PredictResponse:
    """
    The decision. Signals list the assets one after the other, 9 rules each.

    All members are always present, but for *contributions*: only a service that is set to explain sends those.
    """

    schema_version: str = SCHEMA_VERSION
    model_version: str
    request_id: str
    agent_id: str
    created_at: Annotated[datetime, Field(description="UTC, with Z.")]
    orders: tuple[Order, ...]
    signals: tuple[Signal, ...]
    reasoning: str
    contributions: tuple[Contribution, ...] | None = None


def parse_request(body: bytes) -> PredictRequest:
    """
    Read one request; numbers keep every digit.

    Raises:
        NestedTooDeep: status 400.
        MalformedBody: status 422; not UTF-8, not JSON (``NaN`` and ``Infinity`` are not JSON), or not this schema.

    Cost: linear in the body.
    """
    try:
        document = jiter.from_json(body, float_mode="decimal", allow_inf_nan=False)
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


def encode_response(response: PredictResponse) -> bytes:
    """
    Write an answer as the .NET client reads it: quantities are plain JSON numbers.

    By hand, because no encoder at hand writes a Decimal as a number and floats may grow an exponent (1e-05).
    """
    orders = ",".join(
        f'{{"assetSymbol":"{order.asset_symbol}","side":"{order.side}",'
        f'"quantity":{order.quantity:f},"limitPrice":null}}'
        for order in response.orders
    )
    signals = ",".join(
        [
            f'{{"feature":{_text(signal.feature)},"value":{signal.value!r},"rule":{_text(signal.rule)},'
            f'"fired":{"true" if signal.fired else "false"},"contribution":"{signal.contribution}"}}'
            for signal in response.signals
        ]
    )
    contributions = ",".join(
        f'{{"assetSymbol":"{one.asset_symbol}","feature":{_text(one.feature)},"logOdds":{one.log_odds!r}}}'
        for one in response.contributions or ()
    )
    explained = f',"contributions":[{contributions}]' if response.contributions is not None else ""
    created = response.created_at.astimezone(UTC).isoformat(timespec="milliseconds")[: -len("+00:00")]
    return (
        f'{{"schemaVersion":{_text(response.schema_version)},"modelVersion":{_text(response.model_version)},'
        f'"requestId":{_text(response.request_id)},"agentId":{_text(response.agent_id)},'
        f'"createdAt":"{created}Z","orders":[{orders}],"signals":[{signals}],'
        f'"reasoning":{_text(response.reasoning)}{explained}}}'
    ).encode("ascii")


_text = json.encoder.encode_basestring_ascii
