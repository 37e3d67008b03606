"""The page of state diagrams equals what the script generates from the code."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "state_diagrams"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, working on a copy of its page."""
    loader = importlib.machinery.SourceFileLoader("state_diagrams_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    (tmp_path / module.PAGE).parent.mkdir()
    shutil.copy(module.ROOT / module.PAGE, tmp_path / module.PAGE)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def check(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["state_diagrams", "--check"])
    code: int = script.main()
    return code


def test_the_state_diagrams_are_up_to_date(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(script, monkeypatch) == 0


@pytest.mark.parametrize("change", ["cut short", "edited", "extended", "deleted"])
def test_a_changed_page_fails_the_check_and_is_regenerated(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    page: Path = script.ROOT / script.PAGE
    text = page.read_text()
    match change:
        case "cut short":
            page.write_text(text[: len(text) // 2])
        case "edited":
            page.write_text(text.replace("BUFFERING", "WAITING"))
        case "extended":
            page.write_text(text + "\n")
        case _:
            page.unlink()
    assert check(script, monkeypatch) == 1
    assert "run it and commit the result" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["state_diagrams"])
    assert script.main() == 0
    assert page.read_text() == text
