"""The generated sync modules equal what the script generates from their async sources."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "unasync"


@pytest.fixture
def unasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, working on a copy of the package."""
    loader = importlib.machinery.SourceFileLoader("unasync_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, loader.name, module)  # dataclasses look up their module
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    copy = tmp_path / module.PACKAGE.relative_to(module.ROOT)
    shutil.copytree(module.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SCRIPT.parents[1] / "pyproject.toml", tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PACKAGE", copy)
    return module


def check(unasync: ModuleType, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["unasync", "--check"])
    code: int = unasync.main()
    return code


def test_every_generated_file_is_up_to_date(unasync: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(unasync, monkeypatch) == 0


@pytest.mark.parametrize("change", ["cut short", "edited", "extended", "deleted"])
def test_a_changed_generated_file_fails_the_check(
    unasync: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    target: Path = unasync.PACKAGE / unasync.FILES[0].target
    text = target.read_text()
    match change:
        case "cut short":
            target.write_text(text[: len(text) // 2])
        case "edited":
            target.write_text(text.replace("True", "False"))
        case "extended":
            target.write_text(text + "\n")
        case _:
            target.unlink()

    assert check(unasync, monkeypatch) == 1
    assert str(target.name) in capsys.readouterr().err


def test_a_missing_generated_file_is_written_with_its_source(
    unasync: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = unasync.FILES[0]
    target: Path = unasync.PACKAGE / pair.target
    target.unlink()
    monkeypatch.setattr(sys, "argv", ["unasync"])

    assert unasync.main() == 0
    assert target.read_text().startswith(f"# Generated from {Path(pair.source).name} by scripts/unasync")
    assert check(unasync, monkeypatch) == 0


def test_a_replacement_that_no_longer_applies_is_an_error(unasync: ModuleType) -> None:
    pair = next(pair for pair in unasync.FILES if pair.replace)
    source: Path = unasync.PACKAGE / pair.source
    source.write_text(source.read_text().replace(pair.replace[0][0], ""))

    with pytest.raises(SystemExit, match=r"adapt scripts/unasync"):
        unasync.generate(pair)
