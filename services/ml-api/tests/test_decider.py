"""What answers call the model that decided, and what is counted of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_api.catalogue import BUNDLED_MODEL
from ml_api.decider import RULES_VERSION, Decider
from ml_api.metrics import Metrics
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
    decider = Decider(slot, Metrics(), version="2026-02")
    assert decider.version == "2026-02"
    slot.adopt(newer)
    assert decider.version == "9.0.0"


def test_a_version_from_the_settings_names_the_rules_too() -> None:
    assert Decider(None, Metrics(), version="2026-02").version == "2026-02"
    assert Decider(None, Metrics()).version == RULES_VERSION


def counted(metrics: Metrics, name: str) -> list[str]:
    """The lines of one series of numbers, those at zero too."""
    return [
        line for line in metrics.render().decode().splitlines() if line.startswith(f"ml_service_{name}_total")
    ]


def test_decisions_are_counted_by_asset_and_action_from_zero(body: Callable[..., bytes]) -> None:
    metrics = Metrics()
    decider = Decider(ModelSlot(Model.load(BUNDLED_MODEL)), metrics)
    before = counted(metrics, "predictions")
    decider.decide(body())
    assert len(before) == len(counted(metrics, "predictions")) == 6
    assert all(line.endswith(" 0.0") for line in before)
    assert sum(line.endswith(" 1.0") for line in counted(metrics, "predictions")) == 2


@pytest.mark.parametrize("far", [b"6000000000.", b"0.000006"])
def test_values_outside_the_training_range_are_counted_by_feature_of_the_model_that_decides(
    body: Callable[..., bytes], newer: Model, far: bytes
) -> None:
    metrics = Metrics()
    slot = ModelSlot(Model.load(BUNDLED_MODEL))
    decider = Decider(slot, metrics)
    decider.decide(body())
    assert counted(metrics, "feature_out_of_range") == []
    for model in (slot.current, without_ranges(newer)):
        slot.adopt(model)
        decider.decide(re.sub(rb'"close":6\d{4}\.', b'"close":' + far, body()))  # all of BTC's
        averages = [f'ml_service_feature_out_of_range_total{{feature="sma_{days}"}} 1.0' for days in (7, 21)]
        assert set(averages) <= set(counted(metrics, "feature_out_of_range"))


def without_ranges(model: Model) -> Model:
    """The same, but for what its manifest says of the features' ranges."""
    assert model.manifest is not None
    features = [feature.model_copy(update={"min": None, "max": None}) for feature in model.manifest.features]
    return Model.from_bytes(
        model.data, manifest=model.manifest.model_copy(update={"features": tuple(features)})
    )
