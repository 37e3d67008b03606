"""Models and rows for the predictor's benchmarks: trained here, on real bars, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from arch.data import nasdaq, sp500
from numpy.typing import NDArray

__all__ = ["trading3"]

HORIZON, BAND = 5, 0.01  # days ahead, and the return below which a day counts as "hold"
PARAMETERS = {
    "objective": "multiclass",
    "num_class": 3,
    "num_leaves": 31,
    "learning_rate": 0.1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "seed": 7,
    "verbose": -1,
}


def trading3(path: Path) -> tuple[lgb.Booster, NDArray[np.float64]]:
    """Train 3 classes x 100 rounds x 31 leaves over 11 indicators of S&P 500 and NASDAQ days; save it at *path*."""
    frames = [_indicators(data) for data in (sp500.load(), nasdaq.load())]
    table = pd.concat(frames).dropna()
    rows = np.ascontiguousarray(table.drop(columns="label").to_numpy(dtype=np.float64))
    data = lgb.Dataset(rows, table["label"].to_numpy(), feature_name=list(table.columns[:-1]))
    booster = lgb.train(PARAMETERS, data, num_boost_round=100)
    booster.save_model(path)
    return booster, rows


def _indicators(bars: Any) -> pd.DataFrame:
    close, high, low, volume = (bars[name].astype(float) for name in ("Close", "High", "Low", "Volume"))
    change = close.diff()
    gain, loss = change.clip(lower=0).rolling(14).mean(), (-change.clip(upper=0)).rolling(14).mean()
    macd = close.ewm(span=12).mean() - close.ewm(span=26).mean()
    mean, deviation = close.rolling(20).mean(), close.rolling(20).std()
    ahead = close.shift(-HORIZON) / close - 1
    return pd.DataFrame(
        {
            "rsi": 100 * gain / (gain + loss),
            "macd": macd,
            "macd_signal": macd.ewm(span=9).mean(),
            "macd_diff": macd - macd.ewm(span=9).mean(),
            "band_position": (close - mean) / deviation,
            "band_width": deviation / mean,
            "return_1": close.pct_change(),
            "return_5": close.pct_change(5),
            "range": (high - low) / close,
            "volume": volume,
            "volume_ratio": volume / volume.rolling(20).mean(),
            "label": (ahead > -BAND).astype(int) + (ahead > BAND).where(ahead.notna()),
        }
    )
