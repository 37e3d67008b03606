"""Public names are listed, importable and documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import django_project
import pytest

PACKAGES = ("idempotency", "predictor", "ml_api")


def public_modules() -> list[str]:
    names = []
    for package in PACKAGES:
        root = importlib.import_module(package)
        found = [package, *(info.name for info in pkgutil.walk_packages(root.__path__, package + "."))]
        names += [name for name in found if not any(part.startswith("_") for part in name.split("."))]
    return names


MODULES = public_modules()


def load(name: str) -> ModuleType:
    if name.startswith("idempotency.django"):
        django_project.configure()
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_a_public_module_has_a_docstring_and_lists_existing_names(name: str) -> None:
    module = load(name)
    assert module.__doc__, f"{name} has no docstring"
    if inspect.getsource(module).strip().endswith('"""'):
        return  # a package with a docstring only
    assert len(module.__all__) == len(set(module.__all__))
    for public in module.__all__:
        assert hasattr(module, public), f"{name}.__all__ lists {public}, which is not there"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_and_function_is_documented(name: str) -> None:
    module = load(name)
    undocumented = [
        public
        for public in getattr(module, "__all__", ())
        if (inspect.isclass(found := getattr(module, public)) or inspect.isfunction(found))
        and not inspect.getdoc(found)
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("ml_api")])
def test_every_public_method_is_documented(name: str) -> None:
    module = load(name)
    undocumented = [
        f"{public}.{member}"
        for public in getattr(module, "__all__", ())
        if inspect.isclass(found := getattr(module, public)) and found.__module__.split(".")[0] in PACKAGES
        for member, value in vars(found).items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod)))
        and not inspect.getdoc(getattr(found, member))
    ]
    assert undocumented == []


@pytest.mark.parametrize("package", ["idempotency", "predictor"])
def test_a_library_lists_exactly_its_visible_names(package: str) -> None:
    module = load(package)
    visible = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert visible == {name for name in module.__all__ if not name.startswith("_")}
