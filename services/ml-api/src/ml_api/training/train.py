"""
`ml-api train`: trains a small LightGBM model on real bars, evaluates it, and writes its manifest.

The parameters were chosen once: small and strongly regularised, because daily returns have little signal. They were not
tuned on the test years. With one thread, LightGBM's deterministic mode and a fixed seed, the same machine and versions
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from pydantic import JsonValue
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ml_api.trading.indicators import FEATURES, FloatArray
from ml_api.trading.types import CLASSES
from ml_api.training import dataset
from ml_api.training.bars import TrainingDataMissing, load_bars, provenance
from ml_api.training.dataset import Dataset
from ml_api.training.evaluation import TEST_YEARS, Evaluation, Scores, evaluate
from predictor import Manifest, write_manifest

if TYPE_CHECKING:
    import lightgbm

__all__ = ["MODEL_FILE", "SEED", "VERSION", "fit", "train"]

MODEL_FILE: Final = "btc-eth.txt"
"""The model's file name, in the package and in the output directory."""
VERSION: Final = "1.0.0"
SEED: Final = 7
ROUNDS: Final = 100
PARAMETERS: Final[dict[str, JsonValue]] = {
    "objective": "multiclass",
    "num_class": 3,
    "learning_rate": 0.02,
    "num_leaves": 8,
    "min_data_in_leaf": 200,
    "lambda_l2": 10.0,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def train(out: Path, *, seed: int = SEED, console: Console | None = None) -> Manifest:
    """
    Train and evaluate the model, write `btc-eth.txt` and its manifest to the directory *out*, and print the results.

    Args:
        out: Is made if it does not exist.
        seed: The seed of price levels, bagging and feature sampling.
        console: For progress and results; default stderr.
    Returns:
        The manifest. Its metrics are those of the walk-forward evaluation; its provenance has the details.
    Raises:
        TrainingDataMissing: LightGBM's Python package or a data package is not installed.
        OSError: *out* cannot be made or written.

    Cost: about 10 s of one core (eight training runs). Files are written after the evaluation.
    """
    console = console or Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)  # first, so that a bad path fails before the work
    with _progress(console) as steps:
        bars = load_bars()
        total = sum(max(0, len(one.dates) - dataset.WINDOW + 1 - dataset.HORIZON) for one in bars)
        data = dataset.build(bars, seed=seed, advance=steps("indicators", total))
        evaluation = evaluate(
            data, lambda past: _predictor(fit(past, seed)), advance=steps("walk forward", len(TEST_YEARS))
        )
        done = steps("final model", 1)
        booster = fit(data, seed)
        booster.save_model(out / MODEL_FILE)
        manifest = write_manifest(
            out / MODEL_FILE,
            data.rows,
            name="btc-eth",
            version=VERSION,
            classes=CLASSES,
            metrics=cast("dict[str, float]", evaluation.model),
            baseline=cast("dict[str, float]", evaluation.baseline),
            provenance=_describe(data, provenance(bars), evaluation, booster, seed),
        )
        done(1)
    console.print(_table(evaluation))
    console.print(
        f"wrote {out / MODEL_FILE} ({(out / MODEL_FILE).stat().st_size / 1000:.0f} kB) and its manifest"
    )
    return manifest


def fit(data: Dataset, seed: int = SEED) -> lightgbm.Booster:
    """Train one model on *data*."""
    try:
        import lightgbm
    except ImportError as error:
        raise TrainingDataMissing(
            f"training needs the package {error.name}; install it (uv sync --group train)"
        ) from error
    samples = lightgbm.Dataset(data.rows, data.labels, feature_name=list(FEATURES), params=PARAMETERS)
    return lightgbm.train(PARAMETERS | {"seed": seed}, samples, num_boost_round=ROUNDS)


def _predictor(booster: lightgbm.Booster) -> Callable[[FloatArray], FloatArray]:
    def predict(rows: FloatArray) -> FloatArray:
        return np.asarray(booster.predict(rows, num_threads=1), dtype=np.float64)

    return predict


def _describe(
    data: Dataset, sources: list[JsonValue], evaluation: Evaluation, booster: lightgbm.Booster, seed: int
) -> dict[str, JsonValue]:
    gains = booster.feature_importance("gain")
    return {
        "data": sources,
        "samples": len(data),
        "class_counts": np.bincount(data.labels, minlength=len(CLASSES)).tolist(),
        "window_bars": dataset.WINDOW,
        "label": (
            f"return over the next {dataset.HORIZON} bars, BUY above {dataset.THRESHOLD} sigma sqrt({dataset.HORIZON}),"
            " SELL below its negative, else HOLD; sigma: sample deviation of the one-bar returns of the window"
        ),
        "parameters": PARAMETERS | {"seed": seed, "rounds": ROUNDS},
        "importance_gain": dict(zip(FEATURES, (gains / gains.sum()).tolist(), strict=True)),
        "evaluation": asdict(evaluation),
    }


def _table(evaluation: Evaluation) -> Table:
    table = Table(title="Walk-forward, out of sample: model / class frequencies of the training years")
    for heading in ("test years", "samples", "log loss", "balanced accuracy", "direction accuracy"):
        table.add_column(heading, justify="right")
    for fold in evaluation.folds:
        years = f"{fold['test_from'][:4]}-{fold['test_to'][:4]}"
        table.add_row(years, str(fold["tested"]), *_pairs(fold["model"], fold["baseline"]))
    tested = sum(fold["tested"] for fold in evaluation.folds)
    table.add_row("all", str(tested), *_pairs(evaluation.model, evaluation.baseline))
    return table


def _pairs(model: Scores, baseline: Scores) -> Iterator[str]:
    for name in ("log_loss", "balanced_accuracy", "direction_accuracy"):
        yield f"{model[name]:.4f} / {baseline[name]:.4f}"


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    with Progress(console=console, transient=True) as bar:

        def step(title: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(title, total=total)
            return lambda count: bar.advance(task, count)

        yield step
