"""Real waits in tests are limited in number, have a reason, and are marked if they are long."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("packages/idempotency/tests", "packages/predictor/tests", "services/ml-api/tests", "tests")

MOST_SLEEPS = 26
"""
Calls of `sleep`, except `sleep(0)`, in tests and in the programs that they start.

Lower it when there are fewer; never raise it.
"""

LONG = 0.5  # seconds


@functools.cache
def modules(folder: str) -> list[tuple[Path, ast.Module]]:
    """Every Python file below *folder*, parsed."""
    return [(path, ast.parse(path.read_text())) for path in sorted((ROOT / folder).rglob("*.py"))]


def sleeps(folder: str) -> Iterator[tuple[Path, ast.Call, ast.Module]]:
    """Every call of a `sleep` below *folder*, except `sleep(0)`."""
    for path, module in modules(folder):
        for node in ast.walk(module):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "sleep" and [ast.unparse(argument) for argument in node.args] != ["0"]:
                yield path, node, module


def sleeps_in_programs(folder: str) -> Iterator[tuple[Path, int]]:
    """The sleeps in the text of programs that tests run in other processes."""
    for path, module in modules(folder):
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for _ in re.finditer(r"\b(?:time|asyncio|anyio|trio)\.sleep\((?!0\))", node.value):
                    yield path, node.lineno


def test_the_number_of_sleeps_does_not_rise() -> None:
    """Wait for an event or with `until`, or move the clock (`loop_time`, `FakeClock`), instead of sleeping."""
    found = sum(1 for folder in TESTS for _ in (*sleeps(folder), *sleeps_in_programs(folder)))
    assert found == MOST_SLEEPS, "fewer: lower MOST_SLEEPS; more: wait for an event instead"


def test_each_sleep_has_a_comment_with_its_reason() -> None:
    uncommented = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for folder in TESTS
        for path, call, _ in sleeps(folder)
        if "#" not in path.read_text().splitlines()[(call.end_lineno or call.lineno) - 1]
    ]
    assert uncommented == []


def test_a_long_sleep_is_in_a_marked_test() -> None:
    unmarked = []
    for folder in TESTS:
        for path, call, module in sleeps(folder):
            seconds = call.args[0] if call.args else None
            if not isinstance(seconds, ast.Constant) or not seconds.value >= LONG:
                continue
            around = [
                node
                for node in ast.walk(module)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.lineno <= call.lineno <= (node.end_lineno or 0)
            ]
            marks = [ast.unparse(mark) for node in around for mark in node.decorator_list]
            marks += [ast.unparse(node) for node in module.body if isinstance(node, ast.Assign)]
            if "support" not in path.parts and not any("real_time" in mark for mark in marks):
                unmarked.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert unmarked == []


def test_a_real_time_mark_has_a_reason_in_the_file_of_the_test() -> None:
    """`-m real_time` collects only files that contain the mark (conftest.py)."""
    without_reason = []
    for folder in TESTS:
        for path, module in modules(folder):
            marks = {
                node
                for node in ast.walk(module)
                if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("mark.real_time")
            }
            for node in ast.walk(module):
                match node:
                    case ast.Call(args=[ast.Constant(value=str(reason))], keywords=[]) if reason.strip():
                        marks.discard(node.func)
            if marks or ("real_time(" in path.read_text() and not path.name.startswith("test_")):
                without_reason.append(str(path.relative_to(ROOT)))
    assert without_reason == []
