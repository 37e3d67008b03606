"""Traps of LightGBM that no other test file covers, and the page that lists all traps."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from predictor._native import RowCall

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "predictor" / "traps.md"
README = ROOT / "packages" / "predictor" / "README.md"


def test_predict_row_is_unchanged_by_other_predict_calls(trained):
    """In LightGBM a fast configuration of 5 iterations uses all iterations after any full predict."""
    subject = trained("multiclass")
    model, row = subject.load(), subject.rows[3]
    before = model.predict_row(row).tolist()
    model.predict(subject.rows)
    model.predict(subject.rows, raw=True)
    model.leaves(subject.rows)
    model.explain(subject.rows[:5])
    assert model.predict_row(row).tolist() == before


@pytest.mark.anyio
async def test_interleaved_coroutines_do_not_share_a_row(trained):
    subject = trained("multiclass")
    model, expected = subject.load(), subject.load().predict(subject.rows)

    async def ask(index: int) -> bool:
        await asyncio.sleep(0)
        answer = model.predict_row(subject.rows[index])
        await asyncio.sleep(0)
        return bool((answer == expected[index]).all())

    assert all(await asyncio.gather(*(ask(index) for index in range(200))))


def test_a_signal_handler_that_predicts_changes_no_answer(trained, monkeypatch):
    """The handler shares buffers with the interrupted call; a tracer calls it between every two lines."""
    # The kernel predicts a row without running Python lines.
    monkeypatch.setenv("PREDICTOR_ENGINE", "lightgbm")
    subject = trained("multiclass")
    model, rows = subject.load(), subject.rows
    expected = model.predict(rows[:2])
    moments = 0
    while True:
        left = moments + 1

        def at_line(*_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                assert (model.predict_row(rows[1]) == expected[1]).all()

        def at_call(frame, *_: object):
            return at_line if frame.f_code is RowCall.__call__.__code__ else None

        before = sys.gettrace()
        sys.settrace(at_call)
        try:
            answer = model.predict_row(rows[0])
        finally:
            sys.settrace(before)
        assert (answer == expected[0]).all(), f"line {moments}"
        if left > 0:
            break
        moments += 1
    assert moments > 5


COMMA = """
import ctypes, locale, sys
locale.setlocale(locale.LC_ALL, sys.argv[2])
assert locale.localeconv()["decimal_point"] == ","
from predictor import Model
model = Model.load(sys.argv[1])
print([value.hex() for value in model.predict([[0.25, -1.5, 0.125, 2.0, 3.0]]).ravel().tolist()])
"""


@pytest.mark.skipif(
    shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists(),
    reason="no sources to compile a locale with a decimal comma from",
)
def test_a_decimal_comma_locale_changes_no_prediction(trained, tmp_path):
    target = tmp_path / "de_DE.UTF-8"
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", target], check=True, capture_output=True)
    subject = trained("multiclass")
    child = subprocess.run(
        [sys.executable, "-c", COMMA, subject.path, "de_DE.UTF-8"],
        env=os.environ | {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = subject.truth(np.array([[0.25, -1.5, 0.125, 2.0, 3.0]])).ravel().tolist()
    assert child.stdout.strip() == str([value.hex() for value in expected]), child.stderr


def test_every_trap_on_the_page_names_an_existing_test():
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert f"The whole list, {len(rows)} traps" in README.read_text(encoding="utf-8")
    for number, row in rows:
        cited = re.findall(r"`(test_predictor_\w+)::(test_\w+)`", row)
        assert cited or "not this package's" in row, f"trap {number} names no test"
        for module, function in cited:
            source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {function}\(", source, flags=re.MULTILINE), (
                f"trap {number}: {module}::{function}"
            )
