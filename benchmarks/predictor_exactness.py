"""
The exactness of other engines for LightGBM models: rows whose answer is more than 4 ulp from `Booster.predict`'s.

    uv run python benchmarks/predictor_exactness.py

Measures this package and the installed ones of lleaves, treelite's GTIL, tl2cgen and onnxruntime. The rows are like the
training data, or hard rows: thresholds and their neighbours, NaN, infinities, tiny numbers and unusual categories.
docs/predictor/exactness.md has the command that installs the engines without changing the project.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from harness.results import Result, add_options, finish
from numpy.typing import NDArray

from predictor import Model, RowPolicy, write_manifest

Rows = NDArray[np.float64]
Engine = Callable[[Path, lgb.Booster], Callable[[Rows], Any]]
ULPS = 4
OURS = "this package"

MODELS: dict[str, dict[str, Any]] = {
    "numbers": {"objective": "regression"},
    "missing values": {"objective": "binary", "missing": True, "max_bin": 15},
    "zero as missing": {"objective": "regression", "missing": True, "zero_as_missing": True},
    "categories": {"objective": "binary", "categories": True, "missing": True},
    "3 classes": {"objective": "multiclass", "num_class": 3},
    "linear leaves": {"objective": "regression", "linear_tree": True},
}


def train(path: Path, options: dict[str, Any]) -> tuple[lgb.Booster, Rows]:
    options = dict(options)
    missing, categories = options.pop("missing", False), options.pop("categories", False)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2_000, 6)).round(3)
    x[:, 5] = rng.integers(0, 20, len(x))
    score = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + x[:, 5] % 3 + rng.normal(size=len(x)) / 4
    if missing:
        x[rng.random(x.shape) < 0.1] = np.nan
    classes = {"binary": 2, "multiclass": 3}.get(options["objective"])
    y = score if classes is None else np.digitize(score, np.quantile(score, np.arange(1, classes) / classes))
    data = lgb.Dataset(x, y, categorical_feature=[5] if categories else [])
    booster = lgb.train(options | {"num_leaves": 15, "verbose": -1, "num_threads": 1, "seed": 5}, data, 40)
    booster.save_model(path)
    return lgb.Booster(model_file=path), x


def edge_case_rows(booster: lgb.Booster, count: int = 4_000) -> Rows:
    """Return rows of thresholds, their neighbours, and unusual values."""
    unusual = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-36, -1e-36, 2e-35, -1.0, 0.5, 3.9, 99.0, 1e12]
    pools: list[list[float]] = [list(unusual) for _ in range(booster.num_feature())]
    table = booster.trees_to_dataframe().dropna(subset=["split_feature"])
    for name, kind, at in zip(
        table["split_feature"], table["decision_type"], table["threshold"], strict=True
    ):
        pool = pools[booster.feature_name().index(name)]
        if kind == "==":
            pool += [float(code) for code in str(at).split("||")]
        else:
            pool += [
                float(at),
                float(np.nextafter(float(at), np.inf)),
                float(np.nextafter(float(at), -np.inf)),
            ]
    rng = np.random.default_rng(6)
    return np.ascontiguousarray(np.stack([rng.choice(pool, count) for pool in pools], axis=1))


def this_package(path: Path, booster: lgb.Booster) -> Callable[[Rows], Any]:
    lenient = RowPolicy(null="allow", infinite="allow", unseen="allow")
    write_manifest(path, np.zeros((1, booster.num_feature())), name="x", version="1", policy=lenient)
    return Model.load(path).predict


def lleaves(path: Path, booster: lgb.Booster) -> Callable[[Rows], Any]:  # noqa: ARG001
    import lleaves

    model = lleaves.Model(model_file=str(path))
    model.compile()
    return lambda rows: model.predict(rows, n_jobs=1)


def gtil(path: Path, booster: lgb.Booster) -> Callable[[Rows], Any]:  # noqa: ARG001
    import treelite

    model = treelite.frontend.load_lightgbm_model(str(path))
    return lambda rows: treelite.gtil.predict(model, rows).reshape(len(rows), -1).squeeze()


def tl2cgen(path: Path, booster: lgb.Booster) -> Callable[[Rows], Any]:  # noqa: ARG001
    import tl2cgen
    import treelite

    model = treelite.frontend.load_lightgbm_model(str(path))
    library = path.with_suffix(".so")
    tl2cgen.export_lib(model, toolchain="gcc", libpath=str(library), params={})
    compiled = tl2cgen.Predictor(str(library), nthread=1)
    return lambda rows: np.squeeze(compiled.predict(tl2cgen.DMatrix(rows, dtype="float64")))


def onnxruntime(path: Path, booster: lgb.Booster) -> Callable[[Rows], Any]:  # noqa: ARG001
    import onnxmltools
    import onnxruntime
    from onnxmltools.convert.common.data_types import FloatTensorType

    inputs = [("input", FloatTensorType([None, booster.num_feature()]))]
    model = onnxmltools.convert_lightgbm(booster, initial_types=inputs, zipmap=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def predict(rows: Rows) -> Any:
        answer = session.run(None, {"input": rows.astype(np.float32)})[-1]
        if answer.ndim == 2 and answer.shape[1] == 2:
            return answer[:, 1]
        return np.squeeze(answer)

    return predict


ENGINES: dict[str, tuple[str, Engine]] = {
    OURS: ("predictor", this_package),
    "lleaves": ("lleaves", lleaves),
    "treelite GTIL": ("treelite", gtil),
    "tl2cgen": ("tl2cgen", tl2cgen),
    "onnxruntime": ("onnxruntime", onnxruntime),
}


def differing_share(answer: Any, truth: Rows) -> tuple[float, float]:
    """Return the share of rows off by more than 4 ulp, and the largest difference."""
    got = np.asarray(answer, dtype=np.float64).reshape(truth.shape)
    with np.errstate(invalid="ignore"):  # equal infinities
        difference = np.where((got == truth) | (np.isnan(got) & np.isnan(truth)), 0.0, np.abs(got - truth))
        off = ~(difference <= ULPS * np.spacing(np.maximum(np.abs(got), np.abs(truth)))) & (difference != 0.0)
    finite = difference[np.isfinite(difference)]
    return float(off.reshape(len(truth), -1).any(axis=1).mean()), float(finite.max(initial=0.0))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    options = parser.parse_args()
    engines = {name: make for name, (module, make) in ENGINES.items() if importlib.util.find_spec(module)}
    print("| model | rows | " + " | ".join(engines) + " |")
    print("|--|--|" + "--|" * len(engines))
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in list(MODELS)[: 1 if options.quick else None]:
            path = Path(folder, name.replace(" ", "_") + ".txt")
            booster, seen = train(path, MODELS[name])
            calls: dict[str, Callable[[Rows], Any] | None] = {}
            for engine, make in engines.items():
                try:
                    calls[engine] = make(path, booster)
                except Exception:  # each engine has its own errors for models that it does not support
                    calls[engine] = None
            for kind, rows in (("rows like training", seen), ("hard rows", edge_case_rows(booster))):
                truth, cells = np.asarray(booster.predict(rows, num_threads=1)), []
                for engine, call in calls.items():
                    cell, off = _compared(call, rows, truth)
                    cells.append(cell)
                    goal = 0.0 if engine == OURS else None
                    if engine == OURS and math.isnan(off):  # no answer counts as wrong
                        off = 100.0
                    results.append(
                        Result(name=f"{engine}: {name}, {kind}", value=off, unit="% of rows off", goal=goal)
                    )
                print(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    return finish(options, [result for result in results if not math.isnan(result.value)])


def _compared(call: Callable[[Rows], Any] | None, rows: Rows, truth: Rows) -> tuple[str, float]:
    """Return the result in words, and the percentage of rows that are off; NaN if the engine gives no answer."""
    if call is None:
        return "refuses", math.nan
    try:
        off, largest = differing_share(call(rows), truth)
    except Exception:
        return "fails", math.nan
    return "exact" if off == 0 else f"{off:.1%} off, by up to {largest:.1g}", 100 * off


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
