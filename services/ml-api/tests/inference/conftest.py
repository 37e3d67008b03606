"""Fixtures of the tests of the Open Inference Protocol: a model other than the trading model."""

from __future__ import annotations

from pathlib import Path

import lightgbm
import numpy as np
import pytest

from predictor import write_manifest


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a regression model of a nullable number and a category."""
    directory = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(7)
    rows = np.column_stack([random.normal(size=400), random.integers(0, 3, 400)])
    truth = rows[:, 0] + 2 * (rows[:, 1] == 1)
    data = lightgbm.Dataset(rows, truth, feature_name=["size", "colour"], categorical_feature=["colour"])
    booster = lightgbm.train({"objective": "regression", "num_leaves": 7, "verbose": -1}, data, 20)
    booster.save_model(directory / "houses.txt")
    samples = [{"size": float(size), "colour": "rgb"[int(colour)]} for size, colour in rows]
    write_manifest(
        directory / "houses.txt",
        samples,
        name="houses",
        version="2.1",
        categories={"colour": ["r", "g", "b"]},
        nullable=["size"],
    )
    return directory
