"""The service imports only public modules and exported names of the libraries; import-linter checks the rest."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ml_api

SOURCES = sorted(Path(ml_api.__path__[0]).rglob("*.py"))


def library_imports(source: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if node.module.partition(".")[0] in {"idempotency", "predictor"}:
                    yield node.module, alias.name


def test_the_service_builds_on_both_libraries() -> None:
    modules = {module.partition(".")[0] for source in SOURCES for module, _ in library_imports(source)}
    assert modules == {"idempotency", "predictor"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_service_imports_only_what_a_library_exports(source: Path) -> None:
    for module, name in library_imports(source):
        assert not any(part.startswith("_") for part in module.split(".")), f"{module} is private"
        assert name in importlib.import_module(module).__all__, f"{module} does not export {name}"
