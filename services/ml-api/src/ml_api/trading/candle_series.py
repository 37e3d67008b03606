"""The candles of one asset as a decision needs them: times, closes and volumes, and the exact closes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

__all__ = ["CandleSeries"]


class CandleSeries(NamedTuple):
    """
    Candles in the order in which they came, member by member; possibly none.

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
