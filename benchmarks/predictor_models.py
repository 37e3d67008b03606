"""Models and rows for the predictor's benchmarks: public models, or trained here on real bars or synthetic rows."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from arch.data import nasdaq, sp500
from numpy.typing import NDArray

__all__ = ["edge_case_rows", "public", "trading3", "train_on_frame", "train_synthetic"]

PUBLIC = Path(__file__).parents[1] / "packages/predictor/tests/models"

HORIZON, BAND = 5, 0.01  # days ahead; a return of at most 1 % either way is "hold"
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
    """Train 3 classes x 100 rounds x 31 leaves on 11 indicators of daily S&P 500 and NASDAQ bars; save it at *path*."""
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


def public(name: str, folder: Path) -> tuple[Path, NDArray[np.float64], dict[str, range]]:
    """
    Unpack a public model; return its path, rows for it, and its categories by feature name.

    Its training data are not public. Numbers are drawn by the distribution of its split points, which LightGBM puts
    between values of the training. If they were drawn evenly over the feature's range, nearly every row would take the
    same path, because outliers make the range large.
    """
    path = folder / f"{name}.txt"
    path.write_bytes(lzma.decompress((PUBLIC / f"{name}.txt.xz").read_bytes()))
    rng = np.random.default_rng(3)
    header = dict(line.partition("=")[::2] for line in path.read_text().splitlines() if "=" in line)
    infos, columns = header["feature_infos"].split(" "), []
    splits = _split_points(path)
    for feature, info in enumerate(infos):
        if info.startswith("["):
            low, high = map(float, info.strip("[]").split(":"))
            points = np.clip([low, *splits.get(feature, ()), high], low, high)
            columns.append(np.quantile(points, rng.random(8_000)))
        else:
            columns.append(rng.choice([float(code) for code in info.split(":") if int(code) >= 0], 8_000))
    codes = {
        label: range(int(max(map(int, info.split(":")))) + 1)
        for label, info in zip(header["feature_names"].split(" "), infos, strict=True)
        if not info.startswith("[")
    }
    return path, np.ascontiguousarray(np.stack(columns, axis=1)), codes


def _split_points(path: Path) -> dict[int, list[float]]:
    """Return the thresholds of all splits by feature; repeated ones are repeated."""
    found: dict[int, list[float]] = {}
    features: list[int] = []
    for line in path.read_text().splitlines():
        name, _, values = line.partition("=")
        if name == "split_feature":
            features = list(map(int, values.split()))
        elif name == "threshold":
            for feature, value in zip(features, map(float, values.split()), strict=True):
                found.setdefault(feature, []).append(value)
    return found


def train_synthetic(
    folder: Path, *, leaves: int, trees: int, width: int = 28
) -> tuple[Path, NDArray[np.float64]]:
    """Train *trees* trees of up to *leaves* leaves on *width* synthetic features; return the path and the rows."""
    path = folder / f"made_{trees}x{leaves}.txt"
    rng = np.random.default_rng(leaves)
    rows = rng.normal(size=(8_000, width))
    rows[:, ::4] = np.exp(rows[:, ::4])
    rows[:, 1::4] = rows[:, 1::4].round(1)
    score = np.sin(3 * rows[:, 2]) * rows[:, 3] + (rows[:, :8] ** 2).sum(axis=1) / 8 + rng.normal(size=8_000)
    parameters = {"num_leaves": leaves, "min_data_in_leaf": 5, "learning_rate": 0.05, "objective": "binary"}
    data = lgb.Dataset(rows, score > np.median(score))
    lgb.train(parameters | {"num_threads": 1, "verbose": -1}, data, trees).save_model(path)
    return path, rows


def train_on_frame(folder: Path) -> tuple[Path, pd.DataFrame]:
    """Train on a frame of eight columns, three of them categories of text; return the path and the frame."""
    path, rng = folder / "frame.txt", np.random.default_rng(6)
    frame = pd.DataFrame(rng.normal(size=(8_000, 5)), columns=list("abcde"))
    for name, size in (("venue", 5), ("sector", 12), ("symbol", 60)):
        labels = [f"{name} {k}" for k in range(size)]
        frame[name] = pd.Categorical.from_codes(rng.integers(size, size=8_000), categories=labels)
    score = frame["a"] * frame["b"] + frame["symbol"].cat.codes % 7 + frame["sector"].cat.codes % 3
    data = lgb.Dataset(frame, score)
    lgb.train({"num_threads": 1, "verbose": -1, "min_data_per_group": 20}, data, 100).save_model(path)
    return path, frame


def edge_case_rows(rows: NDArray[np.float64], path: Path, *, count: int) -> NDArray[np.float64]:
    """Return copies of rows with a third of the cells replaced: thresholds, their neighbours, and unusual values."""
    rng = np.random.default_rng(9)
    thresholds = [
        float(value)
        for line in path.read_text().splitlines()
        if line.startswith("threshold=")
        for value in line.removeprefix("threshold=").split()
    ]
    near = np.array(thresholds or [0.0])
    pool = np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf)])
    unusual = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-36, -1.0, 3.9])
    replaced = rows[rng.integers(len(rows), size=count)].copy()
    chosen = rng.random(replaced.shape)
    replaced[chosen < 0.3] = rng.choice(pool, int((chosen < 0.3).sum()))
    replaced[chosen > 0.95] = rng.choice(unusual, int((chosen > 0.95).sum()))
    return replaced
