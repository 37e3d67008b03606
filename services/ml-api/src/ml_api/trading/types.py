"""The parts of a decision, as plain values, independent of the request format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, NamedTuple, TypeAlias

__all__ = [
    "ASSETS",
    "CLASSES",
    "MAX_QUANTITY",
    "QUANTITY_PLACES",
    "Action",
    "Asset",
    "CandleSeries",
    "Contribution",
    "Direction",
    "Order",
    "Signal",
]

Asset: TypeAlias = Literal["BTC", "ETH"]
Action: TypeAlias = Literal["SELL", "HOLD", "BUY"]
Direction: TypeAlias = Literal["bullish", "bearish", "neutral"]

ASSETS: Final[tuple[Asset, ...]] = ("BTC", "ETH")
"""The traded assets, in the order of the answers; candles of other assets are ignored."""

CLASSES: Final[tuple[Action, ...]] = ("SELL", "HOLD", "BUY")
"""The model's classes 0, 1, 2."""

MAX_QUANTITY: Final = 1000
QUANTITY_PLACES: Final = 8


class CandleSeries(NamedTuple):
    """
    The candles of one asset, in the order of the request, as one list per member; at least one.

    Attributes:
        times: The start of each candle.
        closes: Closing prices as float64; infinite if the decimal is too large.
        volumes: Volumes as float64; infinite if the decimal is too large.
        exact_close: Returns the exact close of the candle at a position; order sizes are computed with it.
    """

    times: Sequence[datetime]
    closes: Sequence[float]
    volumes: Sequence[float]
    exact_close: Callable[[int], Decimal]


@dataclass(slots=True)
class Order:
    """A market order; its quantity is above 0, at most `MAX_QUANTITY`, and has at most `QUANTITY_PLACES` decimals."""

    asset_symbol: Asset
    side: Literal["BUY", "SELL"]
    quantity: Decimal
    limit_price: None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a quantity that the client would drop or could not read."""
        quantity = self.quantity
        if not (
            quantity.is_finite()
            and 0 < quantity <= MAX_QUANTITY
            and quantity == round(quantity, QUANTITY_PLACES)
        ):
            raise ValueError(
                f"quantity must be above 0, at most {MAX_QUANTITY}, with at most {QUANTITY_PLACES} decimal places"
            )


@dataclass(slots=True)
class Signal:
    """One fixed rule, applied to one indicator of one asset; *value* is rounded to 4 places."""

    feature: str
    value: float
    rule: str
    fired: bool
    contribution: Direction


@dataclass(slots=True)
class Contribution:
    """How much one indicator moved the model towards the chosen action for one asset; away from it if negative."""

    asset_symbol: Asset
    feature: str
    log_odds: float
