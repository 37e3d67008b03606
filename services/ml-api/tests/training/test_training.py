"""Training: labels, no use of future data, figures as documented, and the reproduced committed model."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

from ml_api.predict.contract import parse_request
from ml_api.trading.decision import compute_features, decide
from ml_api.trading.indicators import FEATURES, compute
from ml_api.trading.types import CLASSES
from ml_api.training import MODEL_FILE, TrainingDataMissing, train
from ml_api.training.bars import DailySeries, load_bars
from ml_api.training.dataset import HORIZON, PRICES, WINDOW, build, label
from ml_api.training.evaluation import TEST_YEARS, evaluate, score, splits
from ml_api.training.train import fit
from predictor import Manifest, Model, manifest_path

MODEL = Path(str(files("ml_api"))) / "models" / MODEL_FILE


def random_walk(name: str, seed: int, days: int = 5_000) -> DailySeries:
    """A random walk, which cannot be forecast."""
    rng = np.random.default_rng(seed)
    dates = np.datetime64("1999-01-01") + np.arange(days) * 7 // 5
    closes = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, days)))
    return DailySeries(name, "none", dates, closes, rng.uniform(1, 2, days))


class TestBars:
    """The daily bars of the two data packages."""

    def test_seven_series_of_positive_prices_in_order_of_date(self) -> None:
        bars = load_bars()
        assert [one.name for one in bars] == [
            "S&P 500",
            "NASDAQ Composite",
            "AAPL",
            "FB",
            "GOOG",
            "IBM",
            "MSFT",
        ]
        for one in bars:
            assert len(one.dates) == len(one.closes) == len(one.volumes) > WINDOW
            assert np.all(np.diff(one.dates) > np.timedelta64(0, "D"))
            assert np.all(one.closes > 0)
            assert np.all(one.volumes >= 0)

    def test_prices_are_adjusted_for_stock_splits(self) -> None:
        apple = next(one for one in load_bars() if one.name == "AAPL")
        days = np.flatnonzero(
            np.isin(apple.dates, np.array(["2000-06-21", "2005-02-28"], dtype="datetime64[D]"))
        )
        assert len(days) == 2
        for day in days:  # the quoted price halves on both
            assert apple.closes[day] / apple.closes[day - 1] == pytest.approx(1, abs=0.11)

    @pytest.mark.parametrize("module", ["arch.data.sp500", "bokeh_sampledata"])
    def test_a_missing_package_is_named_with_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch, module: str
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(TrainingDataMissing, match=f"{module}.*uv sync --group train"):
            load_bars()


class TestLabels:
    """A label needs a move of two fifths of a sigma over five bars."""

    @pytest.mark.parametrize(("push", "expected"), [(0.399, 1), (0.401, 2), (-0.399, 1), (-0.401, 0), (0, 1)])
    def test_labels_follow_the_threshold_of_two_fifths_sigma(self, push: float, expected: int) -> None:
        past = random_walk("x", 1, 160).closes
        returns = past[-99:] / past[-100:-1] - 1
        sigma = math.sqrt(float(np.sum((returns - returns.mean()) ** 2)) / 98)
        future = past[-1] * (1 + push * sigma * math.sqrt(5))
        assert label(np.concatenate([past, np.full(HORIZON, future)])) == expected


class TestDataset:
    """The rows equal those that serving computes."""

    def test_each_row_has_the_serving_indicators_of_its_last_hundred_bars(self) -> None:
        bars = random_walk("x", 2, 160)
        data = build([bars], seed=3)
        assert len(data) == 160 - WINDOW + 1 - HORIZON
        for index in (0, 30, len(data) - 1):
            end = WINDOW + index
            closes, volumes = (column[end - WINDOW : end].tolist() for column in (bars.closes, bars.volumes))
            row = compute(closes, volumes)
            level = data.rows[index, 0] / row[0]
            assert level > 0
            for name, ours, theirs in zip(FEATURES, data.rows[index], row, strict=True):
                unit = level if name.startswith(("sma", "macd")) else 1
                assert ours == pytest.approx(theirs * unit, rel=1e-5, abs=1e-6 * unit), name
            assert data.dates[index] == bars.dates[end - 1]
            assert data.known[index] == bars.dates[end - 1 + HORIZON]

    def test_price_levels_cover_the_range_of_traded_prices(self) -> None:
        averages = build([random_walk("x", 4, 2_000)], seed=5).rows[:, 0]
        assert averages.min() < 10 * PRICES[0]
        assert averages.max() > 0.1 * PRICES[1]
        assert np.mean((averages > 10) & (averages < 10_000)) == pytest.approx(3 / 7, abs=0.05)

    def test_equal_seeds_give_equal_samples_and_others_do_not(self) -> None:
        bars = [random_walk("x", 6, 300)]
        assert np.array_equal(build(bars, seed=1).rows, build(bars, seed=1).rows)
        assert not np.array_equal(build(bars, seed=1).rows, build(bars, seed=2).rows)

    def test_samples_are_in_order_of_date(self) -> None:
        dates = build([random_walk("x", 1, 400), random_walk("y", 2, 300)], seed=1).dates
        assert np.all(np.diff(dates) >= np.timedelta64(0, "D"))


class TestWalkForward:
    """No model is trained on data of its test period or later."""

    @pytest.mark.parametrize("year", TEST_YEARS)
    def test_every_training_label_was_known_before_the_first_test_day(self, year: int) -> None:
        bars = [random_walk("x", 1), random_walk("y", 2)]
        data = build(bars, seed=1)
        past, test, purged = splits(data, year)
        assert past.known.max() < np.datetime64(f"{year}-01-01") <= test.dates.min()
        assert test.dates.max() < np.datetime64(f"{year + 2}-01-01")
        assert purged == HORIZON * len(bars)

    def test_a_model_of_random_walks_has_no_skill(self) -> None:
        data = build([random_walk(str(seed), seed) for seed in range(3)], seed=1)

        def trained(past: object) -> Callable[..., object]:
            booster = fit(past)
            return lambda rows: np.asarray(booster.predict(rows, num_threads=1))

        found = evaluate(data, trained)
        assert found.model["log_loss"] > found.baseline["log_loss"]
        assert found.model["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.015)

    def test_scores_match_scikit_learn(self) -> None:
        rng = np.random.default_rng(1)
        probabilities = rng.dirichlet([1, 1, 1], 500)
        truth = rng.integers(0, 3, 500)
        ours = score(truth, probabilities)
        assert ours["log_loss"] == pytest.approx(log_loss(truth, probabilities), rel=1e-12)
        expected = balanced_accuracy_score(truth, probabilities.argmax(axis=1))
        assert ours["balanced_accuracy"] == pytest.approx(expected, rel=1e-12)
        assert ours["accuracy"] == accuracy_score(truth, probabilities.argmax(axis=1))

    def test_direction_accuracy_counts_only_moves(self) -> None:
        truth = np.array([0, 0, 1, 2, 2])
        probabilities = np.array(
            [[0.3, 0.5, 0.2], [0.2, 0.2, 0.6], [0.9, 0.1, 0], [0.1, 0.7, 0.2], [0, 0.1, 0.9]]
        )
        assert score(truth, probabilities)["direction_accuracy"] == 0.75

    def test_confusion_and_calibration_count_every_test_sample(self) -> None:
        data = build([random_walk("x", 1)], seed=1)
        found = evaluate(data, lambda past: lambda rows: np.tile([0.2, 0.5, 0.3], (len(rows), 1)))
        tested = sum(fold["tested"] for fold in found.folds)
        assert np.sum(found.confusion) == np.sum(np.array(found.confusion)[:, 1]) == tested
        for column in found.calibration:
            assert sum(group["count"] for group in column) == tested


class TestTheCommittedModel:
    """The model file in the package is the result of `ml-api train`."""

    def test_training_again_gives_the_same_model_and_figures(self, tmp_path: Path) -> None:
        out = io.StringIO()
        again = train(tmp_path / "new", console=Console(file=out, width=120))
        committed = Manifest.read(manifest_path(MODEL))
        for name, metric in committed.metrics.items():
            assert again.metrics[name].model == pytest.approx(metric.model, abs=2e-3)
            assert again.metrics[name].baseline == pytest.approx(metric.baseline, abs=1e-9)
        if (again.lightgbm, again.provenance["data"]) == (committed.lightgbm, committed.provenance["data"]):
            assert again.sha256 == committed.sha256
            assert (tmp_path / "new" / MODEL_FILE).read_bytes() == MODEL.read_bytes()
            assert again == committed
        assert "2017-2018" in out.getvalue()
        assert Model.load(tmp_path / "new" / MODEL_FILE).info.sha256 == again.sha256

    def test_the_committed_model_is_small_and_has_its_provenance(self) -> None:
        manifest = Manifest.read(manifest_path(MODEL))
        assert MODEL.stat().st_size < 500_000
        assert manifest.classes == CLASSES
        assert tuple(feature.name for feature in manifest.features) == FEATURES
        assert len(manifest.golden) >= 5
        for metric in manifest.metrics.values():
            assert metric.baseline is not None
        assert {"data", "label", "parameters", "evaluation", "importance_gain"} <= set(manifest.provenance)

    def test_the_committed_model_decides_a_request_within_its_training_ranges(
        self, make_body: Callable[..., bytes]
    ) -> None:
        model = Model.load(MODEL)
        request = parse_request(make_body())
        decision = decide(compute_features(request.series), request.portfolio, model.predict)
        assert [asset_decision.asset for asset_decision in decision.asset_decisions] == ["BTC", "ETH"]
        booster = lightgbm.Booster(model_file=str(MODEL))
        for asset_decision in decision.asset_decisions:
            (probabilities,) = np.asarray(booster.predict([asset_decision.row], num_threads=1))
            assert CLASSES[int(probabilities.argmax())] == asset_decision.action
            assert asset_decision.confidence == probabilities.max()
            assert model.manifest is not None
            for feature, value in zip(model.manifest.features, asset_decision.row, strict=True):
                assert feature.min is not None
                assert feature.max is not None
                assert feature.min <= value <= feature.max, feature.name

    def test_the_model_card_states_the_figures_of_the_manifest(self) -> None:
        card = (MODEL.parent / "README.md").read_text(encoding="utf-8")
        evaluation = Manifest.read(manifest_path(MODEL)).provenance["evaluation"]
        assert isinstance(evaluation, dict)
        whole = {"model": evaluation["model"], "baseline": evaluation["baseline"]}
        for fold in [*evaluation["folds"], whole]:
            pairs = [
                f"{fold['model'][name]:.4f} / {fold['baseline'][name]:.4f}"
                for name in ("log_loss", "balanced_accuracy", "direction_accuracy")
            ]
            assert " | ".join(pairs) in card
