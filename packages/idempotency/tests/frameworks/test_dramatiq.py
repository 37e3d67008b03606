"""The program of the Dramatiq recipe, as printed in its page, with duplicates that arrive while the first runs."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import dramatiq
import pytest

PAGE = Path(__file__).parents[4] / "docs" / "recipes" / "dramatiq.md"


def test_a_duplicate_of_a_running_message_is_retried_after_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    effect = "    charges.append(cents)\n"
    assert program.count(effect) == 1
    retried = threading.Event()
    delays: list[Any] = []

    class Retry(dramatiq.Retry):
        def __init__(self, *, delay: float) -> None:
            super().__init__(delay=delay)
            delays.append(delay)
            retried.set()

    monkeypatch.setattr(dramatiq, "Retry", Retry)
    namespace: dict[str, Any] = {"retried": retried}
    exec(program.replace(effect, "    assert retried.wait(30)\n" + effect), namespace)
    assert namespace["charges"] == [500]
    assert delays
    assert all(delay >= 1_000 for delay in delays), "in milliseconds"
