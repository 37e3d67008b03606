"""The recipe for Dramatiq as it is printed, with duplicates that arrive while the first one runs."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import dramatiq
import pytest

PAGE = Path(__file__).parents[4] / "docs" / "recipes" / "dramatiq.md"


def test_a_duplicate_of_a_running_message_comes_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    effect = "    charges.append(cents)\n"
    assert program.count(effect) == 1
    came_back = threading.Event()
    asked: list[Any] = []

    class Retry(dramatiq.Retry):
        def __init__(self, *, delay: float) -> None:
            super().__init__(delay=delay)
            asked.append(delay)
            came_back.set()

    monkeypatch.setattr(dramatiq, "Retry", Retry)
    namespace: dict[str, Any] = {"came_back": came_back}
    exec(program.replace(effect, "    assert came_back.wait(30)\n" + effect), namespace)
    assert namespace["charges"] == [500]
    assert asked
    assert all(delay >= 1_000 for delay in asked), "in milliseconds"
