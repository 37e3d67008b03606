"""The answer of POST /predict: its types, which the OpenAPI document shows too, and its encoding."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ml_api.predict.contract import SCHEMA_VERSION
from ml_api.trading import types as domain
from ml_api.trading.decision import Decision

__all__ = ["Contribution", "Order", "PredictResponse", "encode_answer"]


class Order(Struct, rename="camel"):
    """One market order. limitPrice is always null."""

    asset_symbol: domain.Asset
    side: Literal["BUY", "SELL"]
    quantity: Annotated[
        Raw,
        Meta(
            description=f"At most {domain.QUANTITY_PLACES} decimal places, no exponent.",
            extra_json_schema={"type": "number"},
        ),
    ]
    limit_price: None


class Contribution(Struct, rename="camel"):
    """How much one indicator moved the model towards the chosen action for one asset; away from it if negative."""

    asset_symbol: domain.Asset
    feature: str
    log_odds: float


class PredictResponse(Struct, rename="camel"):
    """
    The decision. Signals list the assets one after the other, with 9 rules each.

    All members are always present, except *contributions*, which only a service that is set to explain sends.
    """

    schema_version: str
    model_version: str
    request_id: str
    agent_id: str
    created_at: Annotated[str, Meta(description="UTC, with Z.", extra_json_schema={"format": "date-time"})]
    orders: list[Order]
    signals: Sequence[domain.Signal]
    reasoning: str
    contributions: list[Contribution] | UnsetType = UNSET


def encode_answer(
    decision: Decision,
    *,
    model_version: str,
    request_id: str,
    agent_id: str,
    created_at: datetime,
    contributions: Sequence[domain.Contribution] | None = None,
) -> bytes:
    """
    Write a decision as the .NET client reads it, with quantities as plain JSON numbers.

    Args:
        contributions: None if the service is not set to explain.
    """
    created = created_at.astimezone(UTC).isoformat(timespec="milliseconds")
    return msgspec.json.encode(
        PredictResponse(
            SCHEMA_VERSION,
            model_version,
            request_id,
            agent_id,
            created.removesuffix("+00:00") + "Z",
            [
                Order(one.asset_symbol, one.side, Raw(f"{one.quantity:f}".encode()), None)
                for one in decision.orders
            ],
            decision.signals,
            decision.reasoning,
            UNSET
            if contributions is None
            else [Contribution(one.asset_symbol, one.feature, one.log_odds) for one in contributions],
        )
    )
