"""The parts of a decision: plain values that check themselves and know no wire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from math import isfinite
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
"""The assets that are traded, in the order in which answers list them; candles of others are ignored."""

CLASSES: Final[tuple[Action, ...]] = ("SELL", "HOLD", "BUY")
"""Model classes 0, 1, 2."""

MAX_QUANTITY: Final = 1000
QUANTITY_PLACES: Final = 8


class CandleSeries(NamedTuple):
    """
    The candles of one asset in the order in which they came, member by member; possibly none.

    Attributes:
        times: When each began.
        closes: Closing prices as float64; infinite where the decimal is too large.
        volumes: Likewise.
        exact_close: The close of the candle at a position as it was sent, since money is sized with it.
    """

    times: Sequence[datetime]
    closes: Sequence[float]
    volumes: Sequence[float]
    exact_close: Callable[[int], Decimal]


@dataclass(slots=True)
class Order:
    """One market order: above 0, at most `MAX_QUANTITY`, of at most `QUANTITY_PLACES` decimal places."""

    asset_symbol: Asset
    side: Literal["BUY", "SELL"]
    quantity: Decimal
    limit_price: None = None

    def __post_init__(self) -> None:
        """ValueError for a quantity that the client would drop or could not read."""
        quantity = self.quantity
        if not (
            quantity.is_finite()
            and 0 < quantity <= MAX_QUANTITY
            and quantity == round(quantity, QUANTITY_PLACES)
        ):
            raise ValueError(
                f"quantity must be above 0, at most {MAX_QUANTITY} and of {QUANTITY_PLACES} places"
            )


@dataclass(slots=True)
class Signal:
    """One fixed rule held against one indicator of one asset; *value* is finite, rounded to 4 places."""

    feature: str
    value: float
    rule: str
    fired: bool
    contribution: Direction

    def __post_init__(self) -> None:
        """ValueError for a value that JSON has no number for."""
        if not isfinite(self.value):
            raise ValueError("a signal's value must be finite")


@dataclass(slots=True)
class Contribution:
    """The amount by which one indicator moved the model towards the action it chose for one asset; negative: away."""

    asset_symbol: Asset
    feature: str
    log_odds: float
