"""`idempotency demo`: the table of a real run, its layout on any terminal, and its exit code."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from idempotency.cli.demo import Tally, kept_promises
from idempotency.cli.demo.screen import Screen, wants_colour
from idempotency.cli.demo.setups import SETUPS

ORDERS = [f"order-{number}" for number in range(1, 6)]
RECORDING = Path(__file__).parents[4] / "docs" / "demo.svg"


@pytest.fixture(scope="module")
def run() -> subprocess.CompletedProcess[str]:
    """One run of the command, with its output to a pipe, 80 columns wide."""
    return subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "idempotency", "demo"],
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def table(output: str) -> dict[str, list[str]]:
    rows = re.findall(r"^([a-z+ ]+?)  +(\d+)  +(\d+)  +(\d+)  +([\d.]+ EUR)  +(\d+)$", output, re.MULTILINE)
    return {name: list(figures) for name, *figures in rows}


@pytest.mark.real_time("the workers of the demo are killed, and leases run out")
def test_demo_keeps_each_promise_and_charges_three_orders_twice_without_protection(
    run: subprocess.CompletedProcess[str],
) -> None:
    assert run.stderr == ""
    assert run.returncode == 0
    assert table(run.stdout) == {
        "no protection": ["5", "8", "3", "147.00 EUR", "0"],
        "at least once": ["5", "6", "1", "49.00 EUR", "0"],
        "at least once + derived key": ["5", "5", "0", "0.00 EUR", "0"],
        "at most once": ["5", "4", "0", "0.00 EUR", "2"],
        "effectively once": ["5", "5", "0", "0.00 EUR", "0"],
    }


@pytest.mark.real_time("the workers of the demo are killed, and leases run out")
def test_demo_output_to_a_pipe_is_plain_ascii_within_the_given_width(
    run: subprocess.CompletedProcess[str],
) -> None:
    assert "\x1b" not in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert run.stdout.isascii()


@pytest.mark.real_time("the workers of the demo are killed, and leases run out")
def test_recording_in_the_docs_equals_the_output_of_a_run(run: subprocess.CompletedProcess[str]) -> None:
    drawn = re.findall(r'<text[^>]* class="line"[^>]*>(.*?)</text>', RECORDING.read_text(), re.DOTALL)
    lines = [
        re.sub("<[^>]+>", "", line).replace("&lt;", "<").replace("&amp;", "&").rstrip() for line in drawn
    ]
    assert [line for line in lines if line] == [
        "$ idempotency demo",
        *(line.rstrip() for line in run.stdout.splitlines() if line.strip()),
    ]


def tallies(charges: dict[str, dict[str, int]]) -> Iterator[Tally]:
    for setup in SETUPS:
        yield Tally(setup, dict.fromkeys(ORDERS, 1) | charges.get(setup.name, {}), frozenset())


@pytest.mark.parametrize("name", ["at least once + derived key", "at most once", "effectively once"])
def test_one_duplicate_breaks_a_promise_that_allows_none(name: str) -> None:
    assert kept_promises(list(tallies({})))
    assert not kept_promises(list(tallies({name: {"order-2": 2}})))


def test_at_least_once_allows_one_duplicate_and_no_second() -> None:
    assert kept_promises(list(tallies({"at least once": {"order-5": 2}})))
    assert not kept_promises(list(tallies({"at least once": {"order-4": 2, "order-5": 2}})))


def test_uncharged_order_breaks_the_promise_unless_its_client_was_told() -> None:
    silent = Tally(SETUPS[3], dict.fromkeys(ORDERS, 1) | {"order-4": 0}, frozenset())
    assert not kept_promises([silent])
    assert kept_promises([replace(silent, unresolved=frozenset({"order-4"}))])


@pytest.mark.parametrize("columns", [24, 40, 57, 80, 200])
def test_screen_wraps_lines_to_the_width_of_the_terminal(columns: int) -> None:
    out = io.StringIO()
    screen = Screen(out, columns=columns, colour=False)
    screen.text("A sentence that is longer than a narrow terminal is wide, and says so.", "title")
    screen.piece("killed before the commit", at=2)
    screen.piece("A: kill -9", at=28)
    screen.piece("B: 409 outcome-unknown")
    screen.piece("0 charges: open", at=62)
    screen.end_line()
    screen.table(["", "orders", "overcharged"], [(["at least once + derived key", "5", "0.00 EUR"], "good")])
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= min(columns, 80)
    shown = " ".join(" ".join(lines).split())
    for text in ("killed before the commit", "A: kill -9", "B: 409", "0 charges: open", "0.00 EUR"):
        assert text in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour_is_used_on_terminals_unless_disabled_by_the_environment(
    stream: io.StringIO, environment: dict[str, str], coloured: bool
) -> None:
    assert wants_colour(stream, environment) is coloured


@pytest.mark.real_time("the workers of the demo are killed, and leases run out")
def test_demo_exits_with_3_if_a_worker_cannot_start() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from idempotency.cli.demo import fleet, run_demo\n"
            "from idempotency.cli.demo.screen import Screen\n"
            "fleet.sys.executable = '/bin/false'\n"
            "sys.exit(run_demo(Screen(sys.stdout)))",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 3
    assert "worker A did not get to 'listening'" in done.stderr
