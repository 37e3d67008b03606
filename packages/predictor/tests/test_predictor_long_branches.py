"""Contributions on branches that test many different features, where those of LightGBM are wrong."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest

from predictor import Model, Unsupported, write_manifest
from predictor._engine import Kernel, make_kernel
from predictor._model_file import parse_model_text
from predictor._native import CONTRIB
from predictor.cli import main

FEATURES = 100


@pytest.fixture(scope="module")
def rare_flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A model of 63 leaves a tree, trained on rare flags: each branch takes the rows of one more flag away."""
    rng = np.random.default_rng(0)
    x = (rng.random((5_000, FEATURES)) < 0.02).astype(float)
    y = x @ rng.uniform(1, 3, FEATURES)
    parameters = {"num_leaves": 63, "verbose": -1, "num_threads": 1}
    path = tmp_path_factory.mktemp("models") / "rare_flags.txt"
    lgb.train(parameters, lgb.Dataset(x, y), 20).save_model(path)
    write_manifest(path, x, name="rare_flags", version="1")
    return path, x[:20]


@pytest.fixture
def levels() -> tuple[str, ...]:
    kernel = pytest.importorskip("predictor._kernel", reason="the extension is not built")
    return tuple(kernel.levels())


def lacks(shares: np.ndarray, raw: np.ndarray) -> float:
    """What contributions lack to the raw scores, relative to the largest one."""
    return float(np.abs(shares.sum(axis=1) - raw).max() / np.abs(shares).max())


def exact_contributions(trees, row: np.ndarray) -> list[Fraction]:
    """The contributions of the first tree in rational numbers, from the integral in native/shap_body.h."""
    sums = [Fraction(0)] * len(row)

    def visit(node: int, passed: dict[int, tuple[int, Fraction]]) -> None:
        if node < 0:
            value = Fraction(float(trees.leaf_value[~node]))
            product = [Fraction(1)]  # of all features: the coefficients of a polynomial in u
            for one, share in passed.values():
                slope = one - share
                product = [
                    share * own + slope * below
                    for own, below in zip([*product, Fraction(0)], [Fraction(0), *product], strict=True)
                ]
            for feature, (one, share) in passed.items():
                rest, before = (
                    [],
                    Fraction(0),
                )  # the product without this feature: a division that leaves nothing
                for coefficient in product[:-1]:
                    before = (coefficient - (one - share) * before) / share
                    rest.append(before)
                integral = sum((own / (power + 1) for power, own in enumerate(rest)), Fraction(0))
                sums[feature] += value * (one - share) * integral
            return
        feature, count = int(trees.split_feature[node]), int(trees.internal_count[node])
        one, share = passed.get(feature, (1, Fraction(1)))
        goes_left = row[feature] <= trees.threshold[node]
        for child, is_hot in ((trees.left_child[node], goes_left), (trees.right_child[node], not goes_left)):
            own = int(trees.leaf_count[~child] if child < 0 else trees.internal_count[child])
            visit(int(child), passed | {feature: (one if is_hot else 0, share * Fraction(own, count))})

    visit(0, {})
    return sums


@pytest.mark.usefixtures("levels")
def test_kernel_serves_a_model_whose_contributions_lightgbm_computes_wrong(rare_flags, monkeypatch):
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)
    path, rows = rare_flags
    booster = lgb.Booster(model_file=path)
    raw = np.asarray(booster.predict(rows, raw_score=True, num_threads=1))
    theirs = np.asarray(booster.predict(rows, pred_contrib=True, num_threads=1))
    assert lacks(theirs, raw) > 1e-6
    model = Model.load(path)
    assert (model.info.engine_reason, model.info.engine[:13]) == ("", "native kernel")
    explained = model.explain(rows)
    assert lacks(np.column_stack([explained.contributions, explained.bias]), raw) < 1e-12


def test_kernel_contributions_on_long_branches_are_exact_at_each_level(rare_flags, levels, monkeypatch):
    path, rows = rare_flags
    parsed = parse_model_text(path.read_bytes()).first(1)
    exact = [[float(share) for share in exact_contributions(parsed.trees, row)] for row in rows[:1]]
    for level in levels:
        monkeypatch.setenv("PREDICTOR_ENGINE", level)
        kernel = make_kernel(parsed)
        assert isinstance(kernel, Kernel), kernel
        assert kernel._engine.describe()["nodes"] > 20  # each serves two features
        shares = kernel.predict(rows[:1], CONTRIB, release=False)
        assert np.abs(shares[:, :-1] - exact).max() <= 1e-12 * np.abs(shares).max()


def test_contributions_that_lightgbm_computes_wrong_are_refused(rare_flags, monkeypatch, tmp_path):
    path, rows = rare_flags
    monkeypatch.setenv("PREDICTOR_ENGINE", "lightgbm")
    model = Model.load(path)
    with pytest.raises(Unsupported, match="do not add up to the raw score"):
        model.explain(rows)
    sample, page = tmp_path / "rows.csv", tmp_path / "report.html"
    answers = model.predict(rows)
    pd.DataFrame(rows, columns=model.info.features).assign(y=answers).to_csv(sample, index=False)
    assert main(["report", str(path), str(sample), "--label", "y", "-o", str(page)]) == 0
    assert "do not add up to the raw score" in page.read_text()
