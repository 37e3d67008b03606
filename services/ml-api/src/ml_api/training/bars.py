"""
Real daily bars from two installable packages; only training needs them.

Closes are adjusted for splits and dividends as far as the source adjusts them, because a split is not a fall in price.
NOTICE names the packages, their licences and the sources of their data.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ml_api import Unusable
from ml_api.trading.indicators import FloatArray

__all__ = ["DailySeries", "TrainingDataMissing", "load_bars", "provenance"]

_SHARES = ("AAPL", "FB", "GOOG", "IBM", "MSFT")


class TrainingDataMissing(Unusable, ImportError):
    """A package that training needs is not installed; the message names the command that installs it."""


@dataclass(frozen=True, slots=True)
class DailySeries:
    """One instrument's daily history, oldest first; *closes* and *volumes* are float64[n], *dates* datetime64[D]."""

    name: str
    package: str
    dates: NDArray[np.datetime64]
    closes: FloatArray
    volumes: FloatArray


def load_bars() -> tuple[DailySeries, ...]:
    """
    Load two indices (1999 to 2018) and five shares (2000 to 2013), 22 000 bars in all.

    Raises:
        TrainingDataMissing: arch or bokeh-sampledata is not installed.
    """
    try:
        return (*_indices(), *_shares())
    except ImportError as error:
        raise TrainingDataMissing(
            f"training needs the package {error.name}; install arch and bokeh-sampledata (uv sync --group train)"
        ) from error


def provenance(bars: Sequence[DailySeries]) -> list[JsonValue]:
    """Return package, version, name, dates and number of bars of each series."""
    return [
        {
            "package": one.package,
            "version": importlib.metadata.version(one.package),
            "series": one.name,
            "from": str(one.dates[0]),
            "to": str(one.dates[-1]),
            "bars": len(one.dates),
        }
        for one in bars
    ]


def _indices() -> Iterator[DailySeries]:
    import arch.data.nasdaq
    import arch.data.sp500

    for name, source in (("S&P 500", arch.data.sp500), ("NASDAQ Composite", arch.data.nasdaq)):
        frame = source.load()
        yield _bars(name, "arch", frame.index.to_numpy(), frame["Adj Close"], frame["Volume"])


def _shares() -> Iterator[DailySeries]:
    from bokeh_sampledata import stocks

    for name in _SHARES:
        columns: Mapping[str, Sequence[object]] = getattr(stocks, name)
        yield _bars(name, "bokeh-sampledata", columns["date"], columns["adj_close"], columns["volume"])


def _bars(name: str, package: str, dates: object, closes: object, volumes: object) -> DailySeries:
    return DailySeries(
        name,
        package,
        np.asarray(dates, dtype="datetime64[D]"),
        np.asarray(closes, dtype=np.float64),
        np.asarray(volumes, dtype=np.float64),
    )
