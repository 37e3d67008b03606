"""Public models of several LightGBM versions predict the same bits as LightGBM on their boundary rows."""

from __future__ import annotations

import lzma
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from predictor import RowPolicy, write_manifest
from predictor.model import Model

MODELS = sorted(Path(__file__).with_name("models").glob("*.txt.xz"))
LENIENT = RowPolicy(null="allow", infinite="allow", unseen="allow")


@pytest.mark.parametrize("archive", MODELS, ids=lambda path: path.name.removesuffix(".txt.xz"))
def test_a_public_model_matches_lightgbm(archive, tmp_path, hard_rows):
    path = tmp_path / "model.txt"
    path.write_bytes(lzma.decompress(archive.read_bytes()))
    booster = lgb.Booster(model_file=path)
    rows = hard_rows(booster, count=1_000)
    # The rows hold the codes of categories, not pandas labels, so that unusual codes reach the model.
    codes = {
        name: range(int(max(info.split(":"), key=int)) + 1)
        for name, info in zip(booster.feature_name(), feature_infos(path), strict=True)
        if info[0] not in "[n"
    }
    # The sample is one row of codes that the model knows.
    known = [float(info.split(":")[0]) if info[0] not in "[n" else 0.0 for info in feature_infos(path)]
    write_manifest(
        path, np.array([known]), name="public", version="1", categories=codes, policy=LENIENT, golden=1
    )
    model = Model.load(path)
    truth = np.asarray(booster.predict(rows, num_threads=1))
    assert (model.predict(rows).view(np.int64) == truth.view(np.int64)).all()
    for row, expected in zip(rows[:100], truth, strict=False):
        assert (model.predict_row(row.tolist()) == expected).all()
    shares = np.asarray(booster.predict(rows[:20], num_threads=1, pred_contrib=True))
    explained = model.explain(rows[:20])
    joined = np.concatenate([explained.contributions, explained.bias[..., None]], axis=-1)
    error = np.abs(joined.reshape(shares.shape) - shares).max()
    assert error == 0 if model.info.engine.startswith("LightGBM") else error <= 1e-12 * np.abs(shares).max()


def feature_infos(path: Path) -> list[str]:
    """The `feature_infos` entry of each feature: a numeric range, category codes, or `none`."""
    line = next(line for line in path.read_text().splitlines() if line.startswith("feature_infos="))
    return line.removeprefix("feature_infos=").split(" ")


def test_all_ten_public_models_are_present():
    assert len(MODELS) == 10
