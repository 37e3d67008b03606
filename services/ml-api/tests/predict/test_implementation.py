"""`ML_API_IMPL` switches the memory of seen candles on and off, with the same fingerprints."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from types import ModuleType

import pytest

from idempotency import RequestView
from ml_api import Unusable
from ml_api.predict import fingerprint
from ml_api.predict.contract import projection


def imported(implementation: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The fingerprint module, imported with ML_API_IMPL set to *implementation*."""
    monkeypatch.setenv("ML_API_IMPL", implementation)
    spec = find_spec("ml_api.predict.fingerprint")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("implementation", "remembers"),
    [("plain", False), ("fast", True), ("", True)],
    ids=["plain", "fast", "unset"],
)
def test_ml_api_impl_selects_the_implementation_and_both_give_the_same_fingerprint(
    implementation: str, remembers: bool, make_body: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported(implementation, monkeypatch)
    view = RequestView("POST", "/predict", b"", [], make_body(count=20), "")

    assert (module._projection is not projection) == remembers
    assert module.decision_fingerprint(view) == fingerprint.decision_fingerprint(view)


def test_an_unknown_implementation_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unusable, match="ML_API_IMPL is 'quick'; set it to fast"):
        imported("quick", monkeypatch)


def test_the_implementation_of_this_run_matches_its_environment() -> None:
    assert (os.environ.get("ML_API_IMPL") == "plain") == (fingerprint._projection is projection)
