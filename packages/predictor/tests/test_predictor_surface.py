"""Public names are listed, documented and typed; serving needs NumPy and LightGBM's library, nothing heavier."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import predictor

MODULES = [
    "predictor",
    *(found.name for found in pkgutil.walk_packages(predictor.__path__, "predictor.")),
]

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"scipy", "pandas", "sklearn", "polars", "pyarrow", "matplotlib", "rich"} or (
            name == "lightgbm" and path is None and not Blocker.asked_for_place
        ):
            raise ImportError(f"{name} is blocked")
    asked_for_place = False
sys.meta_path.insert(0, Blocker())
import importlib.util
find = importlib.util.find_spec
def find_spec(name, package=None):  # asking where a package lies is not importing it
    Blocker.asked_for_place = True
    try: return find(name, package)
    finally: Blocker.asked_for_place = False
importlib.util.find_spec = find_spec

from predictor import Batcher, DriftMonitor, Model, ModelSlot
from predictor.cli import main
try:
    import lightgbm
except ImportError:
    pass
else:
    raise SystemExit("the blocker does not block")
model = Model.load(sys.argv[1])
print(model.predict([[0.0] * 5]).shape, model.predict_row([0.0] * 5).shape, model.explain([[0.0] * 5]).bias.shape)
assert main(["verify", sys.argv[1]]) == 0
loaded = {"scipy", "pandas", "lightgbm", "sklearn"} & set(sys.modules)
assert not loaded, loaded
"""


def test_serving_works_without_scipy_pandas_or_lightgbms_python_layer(trained):
    child = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(trained("multiclass").path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[0] == "(1, 3) (3,) (1, 3)"


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_offer_and_document_it(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert len(module.__all__) == len(set(module.__all__))
    for public in module.__all__:
        offered = getattr(module, public)
        if inspect.isfunction(offered) or inspect.isclass(offered):
            assert inspect.getdoc(offered), public
            for member, value in vars(offered).items() if inspect.isclass(offered) else ():
                if inspect.isfunction(value) and not member.startswith("_"):
                    assert inspect.getdoc(value), f"{public}.{member}"


def test_the_package_offers_the_names_its_modules_define():
    for name in predictor.__all__:
        assert getattr(predictor, name).__module__.startswith("predictor.")
    assert len(predictor.__all__) <= 36


def test_missing_lightgbm_error_names_the_package_to_install(monkeypatch):
    from predictor import _native
    from predictor.errors import EngineUnavailable

    monkeypatch.setattr(_native.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match="install the 'lightgbm'"):
        _native.library.__wrapped__()
