"""The answer of POST /predict: its bytes, and the schema that the OpenAPI document shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from ml_api.predict.contract import SCHEMA_VERSION
from ml_api.trading import types as domain

__all__ = ["Answer", "Contribution", "Order", "PredictResponse", "Signal", "encode_answer"]


@dataclass(slots=True, kw_only=True)
class Answer:
    """A decision with what identifies it. *contributions* is None where the service is not set to explain."""

    schema_version: str = SCHEMA_VERSION
    model_version: str
    request_id: str
    agent_id: str
    created_at: datetime
    orders: Sequence[domain.Order]
    signals: Sequence[domain.Signal]
    reasoning: str
    contributions: Sequence[domain.Contribution] | None = None


def encode_answer(answer: Answer) -> bytes:
    """
    Write an answer as the .NET client reads it: quantities are plain JSON numbers.

    By hand, because no encoder at hand writes a Decimal as a number and floats may grow an exponent (1e-05).
    """
    orders = ",".join(
        f'{{"assetSymbol":"{order.asset_symbol}","side":"{order.side}",'
        f'"quantity":{order.quantity:f},"limitPrice":null}}'
        for order in answer.orders
    )
    signals = ",".join(
        [
            f'{{"feature":{_text(signal.feature)},"value":{signal.value!r},"rule":{_text(signal.rule)},'
            f'"fired":{"true" if signal.fired else "false"},"contribution":"{signal.contribution}"}}'
            for signal in answer.signals
        ]
    )
    contributions = ",".join(
        f'{{"assetSymbol":"{one.asset_symbol}","feature":{_text(one.feature)},"logOdds":{one.log_odds!r}}}'
        for one in answer.contributions or ()
    )
    explained = f',"contributions":[{contributions}]' if answer.contributions is not None else ""
    created = answer.created_at.astimezone(UTC).isoformat(timespec="milliseconds")[: -len("+00:00")]
    return (
        f'{{"schemaVersion":{_text(answer.schema_version)},"modelVersion":{_text(answer.model_version)},'
        f'"requestId":{_text(answer.request_id)},"agentId":{_text(answer.agent_id)},'
        f'"createdAt":"{created}Z","orders":[{orders}],"signals":[{signals}],'
        f'"reasoning":{_text(answer.reasoning)}{explained}}}'
    ).encode("ascii")


_text = json.encoder.encode_basestring_ascii


class _Schema(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, json_schema_serialization_defaults_required=True, protected_namespaces=()
    )


class Order(_Schema):
    """One market order. limitPrice is always null."""

    asset_symbol: domain.Asset
    side: Literal["BUY", "SELL"]
    quantity: Annotated[
        Decimal,
        Field(gt=0, le=domain.MAX_QUANTITY, decimal_places=domain.QUANTITY_PLACES),
        WithJsonSchema(
            {
                "type": "number",
                "description": f"At most {domain.QUANTITY_PLACES} decimal places, no exponent.",
            }
        ),
    ]
    limit_price: None = None


class Signal(_Schema):
    """One fixed rule held against one indicator of one asset."""

    feature: str
    value: Annotated[float, Field(allow_inf_nan=False, description="Rounded to 4 places.")]
    rule: str
    fired: bool
    contribution: domain.Direction


class Contribution(_Schema):
    """How far one indicator moved the model towards the action it chose for one asset; negative: away from it."""

    asset_symbol: domain.Asset
    feature: str
    log_odds: Annotated[float, Field(allow_inf_nan=False)]


def _optional_contributions(schema: dict[str, Any]) -> None:
    schema["required"] = [name for name in schema["required"] if name != "contributions"]


class PredictResponse(_Schema):
    """
    The decision. Signals list the assets one after the other, 9 rules each.

    All members are always present, but for *contributions*: only a service that is set to explain sends those.
    """

    model_config = ConfigDict(json_schema_extra=_optional_contributions)

    schema_version: str = SCHEMA_VERSION
    model_version: str
    request_id: str
    agent_id: str
    created_at: Annotated[datetime, Field(description="UTC, with Z.")]
    orders: tuple[Order, ...]
    signals: tuple[Signal, ...]
    reasoning: str
    contributions: tuple[Contribution, ...] | None = None
