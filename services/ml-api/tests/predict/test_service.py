"""The model version in answers, and the metrics of decisions."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from ml_api.observability.metrics import Metrics
from ml_api.predict.contract import parse_request
from ml_api.predict.service import RULES_VERSION, PredictionService
from ml_api.serving.registry import BUNDLED_MODEL, ModelUnusable, check_trading_model
from ml_api.trading.decision import compute_features, decide
from predictor import Manifest, Model, ModelSlot, manifest_path


@pytest.fixture
def newer(tmp_path: Path) -> Model:
    """The bundled model with the version 9.0.0."""
    path = tmp_path / "newer.txt"
    shutil.copy(BUNDLED_MODEL, path)
    manifest = Manifest.read(manifest_path(BUNDLED_MODEL))
    manifest.model_copy(update={"version": "9.0.0"}).write(manifest_path(path))
    return Model.load(path)


def test_the_version_setting_applies_to_the_first_model_only(newer: Model) -> None:
    slot = ModelSlot(Model.load(BUNDLED_MODEL))
    predictions = PredictionService(slot, Metrics(), version="2026-02")
    assert predictions.version == "2026-02"
    slot.adopt(newer)
    assert predictions.version == "9.0.0"


def test_a_model_with_other_or_no_classes_is_refused(newer: Model) -> None:
    """Probabilities are read by position: with another order a SELL would become a BUY."""
    assert newer.manifest is not None
    check_trading_model(newer)
    for classes in (("BUY", "HOLD", "SELL"), ()):
        turned = newer.manifest.model_copy(update={"classes": classes})
        with pytest.raises(ModelUnusable, match="needs the features"):
            check_trading_model(Model.from_bytes(newer.data, manifest=turned))


def test_the_version_setting_applies_to_the_rules() -> None:
    assert PredictionService(None, Metrics(), version="2026-02").version == "2026-02"
    assert PredictionService(None, Metrics()).version == RULES_VERSION


def counted(metrics: Metrics, name: str) -> list[str]:
    """The samples of one counter, also those at zero."""
    return [
        line for line in metrics.render().decode().splitlines() if line.startswith(f"ml_service_{name}_total")
    ]


def test_decisions_are_counted_by_asset_and_action_from_zero(body: Callable[..., bytes]) -> None:
    metrics = Metrics()
    predictions = PredictionService(ModelSlot(Model.load(BUNDLED_MODEL)), metrics)
    before = counted(metrics, "predictions")
    predictions.decide(body())
    assert len(before) == len(counted(metrics, "predictions")) == 6
    assert all(line.endswith(" 0.0") for line in before)
    made = [line for line in counted(metrics, "predictions") if line.endswith(" 1.0")]
    assert ['asset="BTC"' in line for line in made] == [True, False]
    assert ['asset="ETH"' in line for line in made] == [False, True]


def test_the_model_decides_instead_of_the_fixed_rules(body: Callable[..., bytes]) -> None:
    model, sent = Model.load(BUNDLED_MODEL), body(count=25)
    request = parse_request(sent)
    predictors = [lambda rows: [model.predict_row(row) for row in rows], None]
    by_model, by_rules = (
        decide(compute_features(request.series), request.portfolio, predict) for predict in predictors
    )
    answer = json.loads(PredictionService(ModelSlot(model), Metrics()).decide(sent))
    assert answer["reasoning"] == by_model.reasoning
    assert [Decimal(str(order["quantity"])) for order in answer["orders"]] == [
        order.quantity for order in by_model.orders
    ]
    assert by_model.reasoning != by_rules.reasoning


def test_decisions_and_model_calls_are_timed_in_seconds(body: Callable[..., bytes]) -> None:
    metrics = Metrics()
    predictions = PredictionService(ModelSlot(Model.load(BUNDLED_MODEL)), metrics)
    for _ in range(2):
        predictions.decide(body())
    lines = dict(line.rsplit(" ", 1) for line in metrics.render().decode().splitlines())
    for name in ("ml_service_decision_seconds", "ml_service_model_seconds"):
        assert float(lines[f"{name}_count"]) == 2
        assert 0 < float(lines[f"{name}_sum"]) < 60


def test_a_decision_whose_answer_fails_is_not_counted(body: Callable[..., bytes]) -> None:
    def broken_clock() -> datetime:
        raise OSError("no time")

    metrics = Metrics()
    predictions = PredictionService(ModelSlot(Model.load(BUNDLED_MODEL)), metrics, now=broken_clock)
    before = counted(metrics, "predictions")
    with pytest.raises(OSError, match="no time"):
        predictions.decide(body())
    assert counted(metrics, "predictions") == before


def test_skipped_assets_are_counted(body: Callable[..., bytes]) -> None:
    metrics = Metrics()
    PredictionService(None, metrics).decide(body(count=5))
    assert set(counted(metrics, "skipped_assets")) == {
        f'ml_service_skipped_assets_total{{asset="{asset}"}} 1.0' for asset in ("BTC", "ETH")
    }


def test_decisions_of_the_rules_have_no_contributions(body: Callable[..., bytes]) -> None:
    assert "contributions" not in json.loads(PredictionService(None, Metrics(), explain_top=3).decide(body()))


def test_orders_are_capped_to_the_portfolio_only_with_cap_orders(body: Callable[..., bytes]) -> None:
    broke = body(cash="0", count=25)

    def orders(*, cap: bool) -> object:
        return json.loads(PredictionService(None, Metrics(), cap_orders=cap).decide(broke))["orders"]

    assert orders(cap=False)
    assert orders(cap=True) == []


def test_a_value_at_the_limit_of_its_training_range_is_not_counted(
    body: Callable[..., bytes], newer: Model
) -> None:
    sent = body()
    (_, row, _), *_ = compute_features(parse_request(sent).series).rows
    for end in ("min", "max"):
        assert newer.manifest is not None
        features = [
            feature.model_copy(update={"min": -1e9, "max": 1e9, end: value})
            for feature, value in zip(newer.manifest.features, row, strict=True)
        ]
        manifest = newer.manifest.model_copy(update={"features": tuple(features)})
        model = Model.from_bytes(newer.data, manifest=manifest)
        metrics = Metrics()
        only_btc = sent.replace(b'"ETH"', b'"X"')
        PredictionService(ModelSlot(model), metrics).decide(only_btc)
        assert counted(metrics, "feature_out_of_range") == []


@pytest.mark.parametrize("far", [b"6000000000.", b"0.000006"])
def test_values_outside_the_training_range_of_the_current_model_are_counted_by_feature(
    body: Callable[..., bytes], newer: Model, far: bytes
) -> None:
    metrics = Metrics()
    slot = ModelSlot(Model.load(BUNDLED_MODEL))
    predictions = PredictionService(slot, metrics)
    predictions.decide(body())
    assert counted(metrics, "feature_out_of_range") == []
    for model in (slot.current, without_ranges(newer)):
        slot.adopt(model)
        predictions.decide(re.sub(rb'"close":6\d{4}\.', b'"close":' + far, body()))  # of every BTC candle
        averages = [f'ml_service_feature_out_of_range_total{{feature="sma_{days}"}} 1.0' for days in (7, 21)]
        assert set(averages) <= set(counted(metrics, "feature_out_of_range"))


def without_ranges(model: Model) -> Model:
    """The same model with a manifest without feature ranges."""
    assert model.manifest is not None
    features = [feature.model_copy(update={"min": None, "max": None}) for feature in model.manifest.features]
    return Model.from_bytes(
        model.data, manifest=model.manifest.model_copy(update={"features": tuple(features)})
    )
