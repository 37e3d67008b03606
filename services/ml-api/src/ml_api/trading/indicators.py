"""
Computes the eleven indicators of the newest candle of a series; training and serving use the same function.

For a given number of candles, every exponential average here (RSI, MACD, its signal) is a fixed weighted sum of the
closes. So the weights are computed once per number of candles and cached, and a row needs only a few dot products. The
averages start at the oldest candle, so a row depends on how many candles are sent. TA-Lib starts RSI differently; its
numbers differ from these in the second to fourth digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "MIN_CANDLES", "FloatArray", "Row", "compute"]

FloatArray = NDArray[np.float64]

Row = tuple[float, ...]
"""The eleven indicators of one asset, in the order of `FEATURES`."""

FEATURES: Final = (
    "sma_7",
    "sma_21",
    "rsi_14",
    "macd",
    "macd_signal",
    "macd_diff",
    "bb_width",
    "returns_1",
    "returns_7",
    "volatility_7",
    "volume_ratio",
)
"""The features in vector order."""

MIN_CANDLES: Final = 20
"""With fewer candles the Bollinger width is undefined, so there is no row."""

_MACD_FROM: Final = 26  # candles: the span of the slow average; with fewer, MACD is 0
_SIGNAL_FROM: Final = 34  # candles: enough for nine MACD values; with fewer, the signal is 0


def compute(closes: Sequence[float], volumes: Sequence[float]) -> Row:
    """
    Compute the indicators of the newest candle.

    Args:
        closes: Oldest first, at least `MIN_CANDLES` of them, finite and positive.
        volumes: The same number, in the same order, finite and not negative.
    Returns:
        Eleven values in the order of `FEATURES`. The averages and the three MACD values are in the unit of the price,
        rsi_14 is from 0 to 100, the others are ratios. MACD is 0 with fewer than 26 candles, its signal and difference
        are 0 with fewer than 34.
    Raises:
        ValueError: There are too few candles, or the numbers of closes and volumes differ.

    Extreme inputs may overflow to an indicator that is not finite; the caller must check.

    Cost: about 12 us for 100 candles. NumPy computes the sums over all candles; for short windows, Python floats are
    faster than a NumPy call.
    """
    n = len(closes)
    if n < MIN_CANDLES or len(volumes) != n:
        raise ValueError(
            f"need at least {MIN_CANDLES} closes and as many volumes; got {n} and {len(volumes)}"
        )
    weights = _weights(n)
    prices = np.array(closes, np.float64)
    moves = prices[1:] - prices[:-1]
    rises = np.maximum(moves, 0.0)
    up, down = float(weights.wilder.dot(rises)), float(weights.wilder.dot(rises - moves))
    # The sum of these weights is 0, so the price level does not matter. Subtracting it makes flat prices give exactly
    # 0, so that no rule fires because of rounding.
    level = prices - closes[0]
    macd = float(weights.macd.dot(level)) if n >= _MACD_FROM else 0.0
    signal = float(weights.signal.dot(level)) if n >= _SIGNAL_FROM else 0.0
    last = closes[-1]
    recent_returns = [(now - before) / before for before, now in pairwise(closes[-8:])]
    mean_volume = sum(volumes[-7:]) / 7
    return (
        sum(closes[-7:]) / 7,
        sum(closes[-21:]) / min(21, n),
        100.0 if down == 0 else 100.0 - 100.0 / (1.0 + up / down),
        macd,
        signal,
        macd - signal if n >= _SIGNAL_FROM else 0.0,
        4.0 * _deviation(closes[-20:], ddof=0) / last,
        last / closes[-2] - 1.0,
        last / closes[-8] - 1.0,
        _deviation(recent_returns, ddof=1),
        # A price source without volumes sends zeros: then the ratio is 1, which is neutral.
        volumes[-1] / mean_volume if mean_volume > 0 else 1.0,
    )


def _deviation(values: Sequence[float], *, ddof: int) -> float:
    first = values[0]
    shifted = [value - first for value in values]  # so that the deviation of equal values is exactly 0
    mean = sum(shifted) / len(shifted)
    return math.dist(shifted, [mean] * len(shifted)) / math.sqrt(len(shifted) - ddof)


class _Weights(NamedTuple):
    wilder: FloatArray  # [n-1], over one-step moves
    macd: FloatArray  # [n], over closes
    signal: FloatArray  # [n], over closes


@lru_cache(maxsize=32)
def _weights(n: int) -> _Weights:
    newest = np.zeros(n)
    newest[-1] = 1.0
    # The signal is an average of the MACD values from the 26th candle on. Its weights on MACD values are converted to
    # weights on closes through EMA12 - EMA26.
    on_macd = np.zeros(n)
    if n >= _SIGNAL_FROM:
        on_macd[_MACD_FROM - 1 :] = _pull_back(newest[_MACD_FROM - 1 :], _span_alpha(9))
    return _Weights(
        # Wilder's average starts at 0 at the first candle, which has no move; so the first weight is dropped.
        wilder=_pull_back(newest, 1 / 14)[1:],
        macd=_macd_weights(newest),
        signal=_macd_weights(on_macd),
    )


def _macd_weights(outputs: FloatArray) -> FloatArray:
    return _pull_back(outputs, _span_alpha(12)) - _pull_back(outputs, _span_alpha(26))


def _span_alpha(span: int) -> float:
    """Return the smoothing factor of an exponential average of *span* periods."""
    return 2 / (span + 1)


def _pull_back(outputs: FloatArray, alpha: float) -> FloatArray:
    """
    Convert weights on the outputs of an exponential average to weights on its inputs.

    This is the transpose of the recursion y[0] = x[0], y[t] = (1 - alpha) y[t-1] + alpha x[t].
    """
    inputs = np.empty_like(outputs)
    carried = 0.0
    for t in range(len(outputs) - 1, 0, -1):
        carried += float(outputs[t])
        inputs[t] = alpha * carried
        carried *= 1 - alpha
    inputs[0] = carried + float(outputs[0])
    return inputs
