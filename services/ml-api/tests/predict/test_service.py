"""The version of the model that answers state, and the metrics of decisions."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
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
    """The shipped model as version 9.0.0 of itself."""
    path = tmp_path / "newer.txt"
    shutil.copy(BUNDLED_MODEL, path)
    manifest = Manifest.read(manifest_path(BUNDLED_MODEL))
    manifest.model_copy(update={"version": "9.0.0"}).write(manifest_path(path))
    return Model.load(path)


def test_a_version_from_the_settings_names_the_first_model_and_none_that_is_swapped_in(newer: Model) -> None:
    slot = ModelSlot(Model.load(BUNDLED_MODEL))
    predictions = PredictionService(slot, Metrics(), version="2026-02")
    assert predictions.version == "2026-02"
    slot.adopt(newer)
    assert predictions.version == "9.0.0"


def test_a_model_that_orders_its_classes_otherwise_does_not_decide(newer: Model) -> None:
    """Its answers are read by position: what it calls SELL would be bought."""
    assert newer.manifest is not None
    check_trading_model(newer)
    for classes in (("BUY", "HOLD", "SELL"), ()):
        turned = newer.manifest.model_copy(update={"classes": classes})
        with pytest.raises(ModelUnusable, match="needs the features"):
            check_trading_model(Model.from_bytes(newer.data, manifest=turned))


def test_a_version_from_the_settings_names_the_rules_too() -> None:
    assert PredictionService(None, Metrics(), version="2026-02").version == "2026-02"
    assert PredictionService(None, Metrics()).version == RULES_VERSION


def counted(metrics: Metrics, name: str) -> list[str]:
    """The lines of one series of numbers, those at zero too."""
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


def test_the_model_decides_and_the_fixed_rules_do_not(body: Callable[..., bytes]) -> None:
    model, sent = Model.load(BUNDLED_MODEL), body(count=25)
    request = parse_request(sent)
    chances = [lambda rows: [model.predict_row(row) for row in rows], None]
    by_model, by_rules = (
        decide(compute_features(request.series), request.portfolio, predict) for predict in chances
    )
    answer = json.loads(PredictionService(ModelSlot(model), Metrics()).decide(sent))
    assert answer["reasoning"] == by_model.reasoning
    assert [Decimal(str(order["quantity"])) for order in answer["orders"]] == [
        order.quantity for order in by_model.orders
    ]
    assert by_model.reasoning != by_rules.reasoning


def test_each_decision_and_each_call_of_the_model_is_timed_in_seconds(body: Callable[..., bytes]) -> None:
    metrics = Metrics()
    predictions = PredictionService(ModelSlot(Model.load(BUNDLED_MODEL)), metrics)
    for _ in range(2):
        predictions.decide(body())
    lines = dict(line.rsplit(" ", 1) for line in metrics.render().decode().splitlines())
    for name in ("ml_service_decision_seconds", "ml_service_model_seconds"):
        assert float(lines[f"{name}_count"]) == 2
        assert 0 < float(lines[f"{name}_sum"]) < 60


def test_an_asset_that_cannot_be_judged_is_counted(body: Callable[..., bytes]) -> None:
    metrics = Metrics()
    PredictionService(None, metrics).decide(body(count=5))
    assert set(counted(metrics, "skipped_assets")) == {
        f'ml_service_skipped_assets_total{{asset="{asset}"}} 1.0' for asset in ("BTC", "ETH")
    }


def test_rules_have_nothing_to_explain(body: Callable[..., bytes]) -> None:
    assert "contributions" not in json.loads(PredictionService(None, Metrics(), explain_top=3).decide(body()))


def test_orders_are_cut_to_the_portfolio_only_if_the_settings_say_so(body: Callable[..., bytes]) -> None:
    broke = body(cash="0", count=25)

    def orders(*, cap: bool) -> object:
        return json.loads(PredictionService(None, Metrics(), cap_orders=cap).decide(broke))["orders"]

    assert orders(cap=False)
    assert orders(cap=True) == []


def test_a_value_at_the_end_of_its_training_range_is_within(body: Callable[..., bytes], newer: Model) -> None:
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
def test_values_outside_the_training_range_are_counted_by_feature_of_the_model_that_decides(
    body: Callable[..., bytes], newer: Model, far: bytes
) -> None:
    metrics = Metrics()
    slot = ModelSlot(Model.load(BUNDLED_MODEL))
    predictions = PredictionService(slot, metrics)
    predictions.decide(body())
    assert counted(metrics, "feature_out_of_range") == []
    for model in (slot.current, without_ranges(newer)):
        slot.adopt(model)
        predictions.decide(re.sub(rb'"close":6\d{4}\.', b'"close":' + far, body()))  # all of BTC's
        averages = [f'ml_service_feature_out_of_range_total{{feature="sma_{days}"}} 1.0' for days in (7, 21)]
        assert set(averages) <= set(counted(metrics, "feature_out_of_range"))


def without_ranges(model: Model) -> Model:
    """The same, but for what its manifest says of the features' ranges."""
    assert model.manifest is not None
    features = [feature.model_copy(update={"min": None, "max": None}) for feature in model.manifest.features]
    return Model.from_bytes(
        model.data, manifest=model.manifest.model_copy(update={"features": tuple(features)})
    )
