"""Small models of every kind that LightGBM trains, one training per run, and boundary rows of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from predictor import Model, RowPolicy, write_manifest

LENIENT = RowPolicy(null="allow", infinite="allow", unseen="allow")


@dataclass(frozen=True)
class Trained:
    """A model file, LightGBM's own booster of it, and the rows it was trained on."""

    path: Path
    booster: lgb.Booster
    rows: np.ndarray

    def load(self, **options: Any) -> Model:
        return Model.load(self.path, **options)

    def truth(self, rows: np.ndarray, **options: Any) -> np.ndarray:
        """The predictions of LightGBM's Python layer, on one thread as the predictor requires."""
        return np.asarray(self.booster.predict(rows, num_threads=1, **options))


def data(
    *, missing: bool = False, categories: bool = False, rows: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    x = rng.normal(size=(rows, 5)).round(3)
    x[:, 4] = rng.integers(0, 12, rows)
    score = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + (x[:, 4] % 3) + rng.normal(size=rows) / 4
    if missing:
        x[rng.random(x.shape) < 0.15] = np.nan
    if not categories:
        x[:, 4] = x[:, 4] * 1.5 - 3
    return x, score


# Parameters per model: "target" and "data" are read by `train`, the others by LightGBM.
KINDS: dict[str, dict[str, Any]] = {
    "regression": {"objective": "regression"},
    "binary": {"objective": "binary", "target": 2},
    "binary_missing": {"objective": "binary", "target": 2, "data": {"missing": True}},
    "binary_categories": {"objective": "binary", "target": 2, "data": {"categories": True}},
    "categories_missing": {
        "objective": "multiclass",
        "num_class": 3,
        "target": 3,
        "data": {"missing": True, "categories": True},
    },
    "multiclass": {"objective": "multiclass", "num_class": 3, "target": 3},
    "two_class_softmax": {"objective": "multiclass", "num_class": 2, "target": 2},
    "one_vs_all": {"objective": "multiclassova", "num_class": 3, "target": 3},
    "poisson": {"objective": "poisson", "target": 4, "data": {"missing": True}},
    "cross_entropy": {"objective": "cross_entropy", "target": 2},
    "zero_as_missing": {"objective": "regression", "zero_as_missing": True, "data": {"missing": True}},
    "tiny_bins": {"objective": "regression", "max_bin": 7, "data": {"missing": True}},
    "forest": {
        "objective": "binary",
        "target": 2,
        "boosting": "rf",
        "bagging_freq": 1,
        "bagging_fraction": 0.6,
    },
    "dart": {"objective": "regression", "boosting": "dart"},
    "linear": {"objective": "regression", "linear_tree": True},
    "one_leaf": {"objective": "regression", "min_data_in_leaf": 10_000},
}


def train(
    folder: Path,
    name: str,
    parameters: dict[str, Any],
    *,
    rounds: int = 6,
    policy: RowPolicy | None = LENIENT,
) -> Trained:
    parameters = dict(parameters)
    target, options = parameters.pop("target", None), parameters.pop("data", {})
    x, score = data(**options)
    y = score if target is None else np.digitize(score, np.quantile(score, np.arange(1, target) / target))
    categorical = [4] if options.get("categories") else []
    settings = {
        "num_leaves": 8,
        "min_data_in_leaf": 5,
        "min_data_per_group": 5,
        "verbose": -1,
        "num_threads": 1,
    }
    names = ["a", "b", "c", "d", "e"]
    dataset = lgb.Dataset(x, y, feature_name=names, categorical_feature=categorical)
    booster = lgb.train(settings | parameters, dataset, num_boost_round=rounds)
    path = folder / f"{name}.txt"
    booster.save_model(path)
    classes = {2: ("no", "yes"), 3: ("SELL", "HOLD", "BUY")}.get(target, ()) if target else ()
    if parameters["objective"] == "cross_entropy":
        classes = ()
    write_manifest(path, x, name=name, version="1", classes=classes, policy=policy)
    return Trained(path, lgb.Booster(model_file=path), x)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """`trained("binary")`: the model of that name in `KINDS`, trained at its first use."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in made:
            made[name] = train(folder, name, KINDS[name])
        return made[name]

    return get


@pytest.fixture(params=KINDS)
def any_model(request: pytest.FixtureRequest, trained: Callable[[str], Trained]) -> Trained:
    """Each model of `KINDS` in turn."""
    return trained(request.param)


@pytest.fixture
def train_model(tmp_path: Path) -> Callable[..., Trained]:
    """`train_model("name", {...})`: a model with these parameters, in the folder of the test."""

    def make(name: str, parameters: dict[str, Any], **options: Any) -> Trained:
        return train(tmp_path, name, parameters, **options)

    return make


@pytest.fixture
def strict(tmp_path: Path) -> Trained:
    """A binary model with the default policy, which refuses every row that does not fit."""
    return train(tmp_path, "strict", KINDS["binary"], policy=None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def hard_rows(booster: lgb.Booster, *, seed: int = 0, count: int = 2_000) -> np.ndarray:
    """Rows of thresholds, their neighbouring floats, and special values such as NaN, infinity and subnormals."""
    rng = np.random.default_rng(seed)
    width = booster.num_feature()
    pools: list[list[float]] = [
        [
            np.nan,
            np.inf,
            -np.inf,
            0.0,
            -0.0,
            1e-36,
            -1e-36,
            1e-35,
            2e-35,
            5e-324,
            1.7e308,
            -1.0,
            -0.5,
            0.5,
            3.9,
            1e12,
        ]
        for _ in range(width)
    ]

    def walk(node: dict[str, Any]) -> None:
        if "split_feature" not in node:
            return
        pool = pools[node["split_feature"]]
        if node["decision_type"] == "==":
            pool += [float(code) for code in node["threshold"].split("||")] + [50.0, 99.0]
        else:
            at = float(node["threshold"])
            pool += [at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf), round(at, 3)]
        walk(node["left_child"])
        walk(node["right_child"])

    for tree in booster.dump_model()["tree_info"]:
        walk(tree["tree_structure"])
    return np.ascontiguousarray(np.stack([rng.choice(pool, count) for pool in pools], axis=1))


@pytest.fixture(name="hard_rows")
def _hard_rows() -> Callable[..., np.ndarray]:
    return hard_rows
