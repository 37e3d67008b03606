"""What answers call the model that decided."""

from __future__ import annotations

import shutil
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
