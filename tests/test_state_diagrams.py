"""The drawn states are, byte for byte, those of the code."""

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
    """The script, at work on a copy of its page."""
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


def test_the_page_is_up_to_date(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(script, monkeypatch) == 0


@pytest.mark.parametrize("spoil", ["cut short", "edited", "extended", "deleted"])
def test_a_page_that_differs_anywhere_is_found_and_written_anew(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoil: str
) -> None:
    page: Path = script.ROOT / script.PAGE
    text = page.read_text()
    match spoil:
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
