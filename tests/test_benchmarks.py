"""Benchmark results are stored with command and machine, and shown unchanged, with missed goals marked."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import middleware_parts
import numpy as np
import pytest
from harness import bench
from harness.figures import Figure, Machine, Measurements, Run, number
from harness.pages import with_figures
from harness.plots import draw
from harness.results import Result, add_options, finish

ROOT = Path(__file__).parents[1]
MACHINE = Machine(processor="A processor", cores=2, system="Linux x86_64", python="CPython 3.11.7")


def measured(*runs: list[Result]) -> Measurements:
    return Measurements(
        benchmark="sample",
        command="uv run python benchmarks/sample.py",
        machine=MACHINE,
        runs=tuple(
            Run(measured="2026-01-02", seconds=3, load=0.5, results=tuple(results)) for results in runs
        ),
    )


def ratio(value: float, *, name: str = "replay", goal: float | None = 1.5, binds: bool = True) -> Result:
    return Result(name=name, value=value, unit="× one GET", goal=goal, binds=binds)


def texts(chart: str) -> list[str]:
    """The texts of a chart."""
    return [element.text or "" for element in ET.fromstring(chart).iter("{http://www.w3.org/2000/svg}text")]


def test_charts_and_page_match_the_stored_results() -> None:
    stale = {path.name for path, text in bench.drawn().items() if path.read_text(encoding="utf-8") != text}
    assert stale == set()


def test_every_benchmark_has_a_command_and_a_section_of_the_page() -> None:
    scripts = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "benchmarks").rglob("*.py")
        if "add_options(parser)" in path.read_text(encoding="utf-8") and "harness" not in path.parts
    }
    assert {benchmark.command[0] for benchmark in bench.BENCHMARKS.values()} == scripts
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- figures of (\w+) -->", page)) == set(bench.BENCHMARKS)


@pytest.mark.parametrize("key", [middleware_parts.new_key, lambda: b"replayed"], ids=["first run", "replay"])
def test_the_table_of_parts_counts_every_function_call_of_a_request(key: Callable[[], bytes]) -> None:
    _, guarded, _ = middleware_parts.applications()
    functions = asyncio.run(middleware_parts.count(guarded, key, middleware_parts.LIBRARY))
    parts = middleware_parts.by_part(functions)
    assert sum(part.calls for part in parts.values()) == sum(done.calls for done in functions.values()) > 20
    assert parts.keys() >= {"compute the fingerprint (E9)", "the memory store: claim, record, expiry"}


def test_two_benchmarks_run_and_write_results_and_charts(tmp_path: Path) -> None:
    names = ["decision", "store_redis"]  # `.ci/run` runs them all
    done = subprocess.run(
        [ROOT / "scripts/bench", "--quick", "--folder", tmp_path, *names],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        found = Measurements.read(tmp_path / f"{name}.json")
        assert found.command == bench.BENCHMARKS[name].shown
        assert found.machine.cores >= 1
        assert any(figure.goal for figure in found.figures())
        assert found.command in "\n".join(texts((tmp_path / f"{name}.svg").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("values", "spread", "verdict"),
    [
        ([1.2], "1.2", "held"),
        ([1.0, 1.4, 1.2], "1 - 1.4", "held"),
        ([1.6, 1.2], "1.2 - 1.6", "missed in 1 of 2 runs"),
        ([1.6, 1.7], "1.6 - 1.7", "missed"),
    ],
)
def test_a_figure_has_its_spread_and_the_number_of_runs_that_missed_the_goal(
    values: list[float], spread: str, verdict: str
) -> None:
    figure = Figure(tuple(ratio(value) for value in values))
    assert (figure.spread, figure.verdict) == (spread, verdict)


def test_a_missed_goal_is_marked_in_the_chart_and_in_the_table() -> None:
    found = measured([ratio(1.7)], [ratio(1.2)])
    assert "1.2 - 1.7  (≤ 1.5 missed in 1 of 2 runs)" in texts(draw(found))
    assert "var(--missed)" in draw(found).partition("</style>")[2]
    page = with_figures("<!-- figures of sample -->\n<!-- end of figures -->\n", {"sample": found})
    assert "| replay | 1.2 - 1.7 | × one GET | ≤ 1.5 | **missed in 1 of 2 runs** |" in page


def test_a_met_goal_is_not_marked_as_missed() -> None:
    assert "var(--missed)" not in draw(measured([ratio(1.2)])).partition("</style>")[2]


def test_a_missed_goal_that_does_not_bind_is_below_and_does_not_fail() -> None:
    result = ratio(1.7, binds=False)
    assert Figure((result,)).verdict == "below"
    assert not result.missed


def test_a_goal_may_be_met_by_an_alternative() -> None:
    result = replace(ratio(1.7), also="or 20 ms more", held=True)
    assert (Figure((result,)).goal, Figure((result,)).verdict) == ("≤ 1.5, or 20 ms more", "held")
    assert "replay (goal ≤ 1.5, or 20 ms more)" in texts(draw(measured([result])))


def test_the_chart_names_the_command_the_machine_and_the_runs() -> None:
    said = " ".join(texts(draw(measured([ratio(1.2)], [ratio(1.3)]))))
    assert "uv run python benchmarks/sample.py" in said
    assert "2 runs, 2026-01-02, load average before them 0.5; 2 cores of A processor, Linux x86_64" in said


def test_the_same_figures_give_the_same_chart() -> None:
    found = measured([ratio(1.2), ratio(40.0, name="first run", goal=None)], [ratio(1.3)])
    assert draw(found) == draw(found)


def test_the_chart_has_a_dark_color_scheme() -> None:
    assert "@media(prefers-color-scheme:dark)" in draw(measured([ratio(1.2)]))


def test_measurements_round_trip_through_json(tmp_path: Path) -> None:
    found = measured([ratio(1.25), ratio(3.0, name="first run", goal=None)])
    found.write(tmp_path / "sample.json")
    assert Measurements.read(tmp_path / "sample.json") == found


def test_a_further_run_is_added_only_on_the_same_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Run(measured="2026-01-02", seconds=3, load=0.5, results=(ratio(1.2),))
    monkeypatch.setattr(bench, "measure", lambda _benchmark, quick: one)
    assert bench.run(["decision"], tmp_path, runs=2, add=False, quick=False) == 0
    assert bench.run(["decision"], tmp_path, runs=1, add=True, quick=False) == 0
    kept = Measurements.read(tmp_path / "decision.json")
    assert len(kept.runs) == 3
    replace(kept, machine=MACHINE).write(tmp_path / "decision.json")
    assert bench.run(["decision"], tmp_path, runs=1, add=True, quick=False) == 1
    assert "measured on another machine" in capsys.readouterr().err
    assert bench.run(["decision"], tmp_path, runs=1, add=False, quick=False) == 0
    assert len(Measurements.read(tmp_path / "decision.json").runs) == 1


def test_a_failed_benchmark_keeps_the_stored_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.BENCHMARKS, "gone", bench.Benchmark(("benchmarks/gone.py",)))
    measured([ratio(1.2)]).write(tmp_path / "gone.json")
    before = (tmp_path / "gone.json").read_text(encoding="utf-8")
    assert bench.run(["gone"], tmp_path, runs=1, add=False, quick=False) == 1
    assert (tmp_path / "gone.json").read_text(encoding="utf-8") == before


def test_a_section_without_stored_results_is_unchanged() -> None:
    text = "<!-- figures of other -->\nby hand\n<!-- end of figures -->\n"
    assert with_figures(text, {"sample": measured([ratio(1.2)])}) == text


@pytest.mark.parametrize(("value", "code"), [(1.2, 0), (1.7, 1), (np.float64(1.2), 0), (np.float64(1.7), 1)])
def test_finish_writes_the_results_and_fails_if_a_goal_is_missed(
    tmp_path: Path, value: float, code: int
) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    path = tmp_path / "results.json"
    assert finish(parser.parse_args(["--check", "--json", str(path)]), [ratio(value)]) == code
    assert [Result(**found) for found in json.loads(path.read_text(encoding="utf-8"))] == [ratio(value)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.234, "1.23"), (41.26, "41.3"), (234.5, "234"), (12_345.6, "12,346"), (1.6e-13, "2e-13")],
)
def test_numbers_are_rounded_to_significant_digits(value: float, text: str) -> None:
    assert number(value) == text
