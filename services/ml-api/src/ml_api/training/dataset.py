"""
Makes rows and labels from bars. A row is what the service would have computed on that day; its label is what came next.

**Rows** come from `ml_api.trading.indicators.compute`, which the service also uses, over the 100 bars up to and
including the day. The client sends 100 bars, too, and the averages depend on where they start.

**Price level** must not matter: a share at 30, an index at 2 000 and a coin at 60 000 must look alike, but five of the
eleven features are in the unit of the price. So each window is rescaled to a random price, uniform in log scale. Then
every level that a client may send is inside the training range, and the trees cannot learn anything from it.

**Labels** compare the return over the next 5 bars with the window's volatility: BUY above 0.4 sigma sqrt(5), SELL below
the negative of that, HOLD between. Sigma is that of the one-bar returns of the whole window. From only 20 returns it
would be so uncertain that a model could "forecast" HOLD even on a random walk: the features would show it that sigma
is low.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_api.trading.indicators import FEATURES, FloatArray, compute
from ml_api.training.bars import DailySeries

__all__ = ["HORIZON", "PRICES", "THRESHOLD", "WINDOW", "Dataset", "build", "label"]

WINDOW = 100
"""The number of bars from which a row is computed."""
HORIZON = 5
"""The number of bars ahead that a label covers."""
THRESHOLD = 0.4
"""A return counts as a move above this many expected deviations; with 0.4 the three classes have similar sizes."""
PRICES = (0.1, 1_000_000.0)
"""The price levels that windows are rescaled to."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """
    Samples in order of date.

    Attributes:
        rows: float64[n, 11] in the order of FEATURES.
        labels: int64[n], 0 SELL, 1 HOLD, 2 BUY.
        dates: `datetime64[D]` of shape n, the day of the row's newest bar.
        known: `datetime64[D]` of shape n, the day on which the label became known.
    """

    rows: FloatArray
    labels: NDArray[np.int64]
    dates: NDArray[np.datetime64]
    known: NDArray[np.datetime64]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: NDArray[np.bool_]) -> Dataset:
        """Return the samples that *mask*, bool[n], selects."""
        return Dataset(self.rows[mask], self.labels[mask], self.dates[mask], self.known[mask])


def build(
    bars: Sequence[DailySeries], *, seed: int, advance: Callable[[int], None] = lambda _: None
) -> Dataset:
    """
    Make a sample for every day that has 100 bars up to it and 5 bars after it.

    Args:
        seed: The seed of the price levels; equal seeds give equal datasets.
        advance: Called with the number of new samples, after each series.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for one in bars:
        ends = np.arange(WINDOW - 1, len(one.closes) - HORIZON)
        levels = np.exp(rng.uniform(math.log(PRICES[0]), math.log(PRICES[1]), len(ends)))
        rows = np.empty((len(ends), len(FEATURES)))
        for row, end, level in zip(rows, ends, levels, strict=True):
            past = slice(end - WINDOW + 1, end + 1)
            closes = one.closes[past] * (level / one.closes[end])
            row[:] = compute(closes.tolist(), one.volumes[past].tolist())
        # Rounded to single precision, because the last bits depend on the machine's BLAS: so training on another
        # machine uses the same numbers.
        rows = rows.astype(np.float32).astype(np.float64)
        labels = np.array([label(one.closes[: end + HORIZON + 1]) for end in ends])
        parts.append(Dataset(rows, labels, one.dates[ends], one.dates[ends + HORIZON]))
        advance(len(ends))
    order = np.argsort(np.concatenate([part.dates for part in parts]), kind="stable")
    whole = Dataset(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.dates for part in parts]),
        np.concatenate([part.known for part in parts]),
    )
    return Dataset(whole.rows[order], whole.labels[order], whole.dates[order], whole.known[order])


def label(closes: FloatArray) -> int:
    """Label the bar `HORIZON` before the end of *closes*, float64[n >= WINDOW + HORIZON]: 0 SELL, 1 HOLD, 2 BUY."""
    past = closes[-HORIZON - WINDOW : -HORIZON]
    sigma = float(np.std(np.diff(past) / past[:-1], ddof=1))
    move = float(closes[-1] / past[-1] - 1)
    limit = THRESHOLD * sigma * HORIZON**0.5
    return 2 if move > limit else 0 if move < -limit else 1
