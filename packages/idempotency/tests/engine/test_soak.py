"""
A short soak of each promise: a service is killed and frozen at every step of a request, and keeps its promise.

The long soak is `scripts/soak` (docs/reliability.md). The judge is tested too: for each invariant it gets a journal, or
a client's responses, that break the invariant.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clients import Answer, Operation
from faults import Board, Fate, steps_of
from journal import Journal
from judge import Verdict, judge

pytestmark = pytest.mark.real_time("a service is killed at every step, again and again")

SOAK = Path(__file__).parents[2] / "soak"


RUNS = ("T/sqlite", "T/postgres", "M/redis", "L/redis")
BRIEF = {
    "requests": 50,
    "lease": 0.25,
    "slow": 0.1,
    "every": 2,
    "workers": 3,
    "at-once": 8,
    "harm-every": 1.5,
}


@pytest.fixture(scope="module")
def reports(redis_binary: Path, postgres_url: str) -> dict[str, dict[str, Any]]:
    """The soak's report of each run; the server fixtures are here because the soak starts servers of the same kinds."""
    command = [sys.executable, str(SOAK), *RUNS, *[f"--{name}={value}" for name, value in BRIEF.items()]]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return {report["run"]: report for report in map(json.loads, ran.stdout.splitlines())}


@pytest.mark.parametrize("run", RUNS)
def test_service_killed_at_every_step_keeps_its_promise(run: str, reports: dict[str, dict[str, Any]]) -> None:
    report, mode = reports[run], run[0]
    assert report["requests"] >= 50
    assert all(report["kills_by_step"][step] > 0 for step in steps_of(mode))
    promised = ("unexplained", "lost", "phantom", "changed", "stuck", "violations")
    assert {name: report[name] for name in promised} == dict.fromkeys(promised, 0)
    assert mode == "L" or report["duplicates"] == 0
    assert mode == "M" or report["unknown"] == 0
    assert mode != "T" or (report["effects"], report["looks"] > 0) == (report["operations"], True)


LEASE = 1.0
KEY = "t:k"


def response(effect: str = "e1", *, late: bool = False, replayed: bool = False, **changed: Any) -> Answer:
    return Answer(
        **{
            "status": 201,
            "problem": "",
            "digest": effect,
            "effect": effect,
            "marked": True,
            "replayed": replayed,
            "late": late,
        }
        | changed
    )


UNKNOWN = {"status": 409, "problem": "outcome-unknown", "effect": "", "digest": "", "marked": False}


class JournalBuilder:
    """Builds a journal, line by line: times in seconds, owners and processes by number."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def run(
        self,
        owner: int,
        at: float,
        *,
        attempt: int = 1,
        fence: int | None = None,
        effect: str | None = None,
        end: float | None = None,
        held: bool = True,
        killed: float | None = None,
    ) -> JournalBuilder:
        claim = {"key": KEY, "owner": str(owner), "pid": owner}
        granted = {
            "attempt": attempt,
            "fence": owner if fence is None else fence,
            "asked": at,
            "at": at + 0.001,
        }
        self.events += [{"what": "asked", "at": at} | claim, {"what": "claimed"} | granted | claim]
        if effect is not None:
            self.events.append({"what": "effect", "at": at + 0.002, "id": effect} | claim)
        if end is not None:
            self.events.append({"what": "completed", "at": end, "asked": end, "held": held} | claim)
        if killed is not None:
            self.events.append({"what": "ended", "at": killed, "worker": owner, "code": -signal.SIGKILL})
        return self

    def judge(self, *answers: Answer, mode: str = "L", **seen: Any) -> Verdict:
        return judge(mode, LEASE, self.events, [Operation("t", "k", answers=list(answers), **seen)])


def one_run() -> JournalBuilder:
    return JournalBuilder().run(1, 0.0, effect="e1", end=0.1)


def taken_over(at: float = 1.1) -> JournalBuilder:
    """An owner dies after its effect; the next repeats it."""
    return (
        JournalBuilder().run(1, 0.0, effect="e1", killed=0.2).run(2, at, attempt=2, effect="e2", end=at + 0.1)
    )


def test_judge_reports_nothing_for_a_correct_journal() -> None:
    verdict = one_run().judge(
        response(), response(replayed=True), response(late=True, replayed=True), mode="T"
    )
    assert verdict.violations == []
    assert verdict.counts["effects"] == 1


def test_judge_explains_a_second_effect_after_a_kill() -> None:
    verdict = taken_over().judge(response("e2"), response("e2", late=True, replayed=True))
    assert verdict.violations == []
    assert (verdict.counts["duplicates"], verdict.counts["after_a_kill"], verdict.counts["takeovers"]) == (
        1,
        1,
        1,
    )
    assert verdict.recoveries == [pytest.approx(0.901)]


def test_judge_explains_a_second_effect_after_a_stall() -> None:
    frozen = JournalBuilder().run(1, 0.0, effect="e1", end=1.9, held=False)
    verdict = frozen.run(2, 1.1, attempt=2, effect="e2", end=1.2).judge(response("e2"))
    assert verdict.violations == []
    assert (verdict.counts["after_a_stall"], verdict.counts["late_writes_refused"]) == (1, 1)


def test_judge_accepts_a_takeover_by_an_unconfirmed_claim_that_is_released() -> None:
    story = JournalBuilder().run(1, 0.0, effect="e1", end=1.9, held=False)
    unconfirmed = {"key": KEY, "owner": "9", "pid": 9}
    story.events += [
        {"what": "asked", "at": 1.1} | unconfirmed,
        {"what": "told", "at": 1.2, "answered": False} | unconfirmed,
        {"what": "released", "at": 1.3, "asked": 1.3, "held": True} | unconfirmed,
    ]
    verdict = story.run(2, 1.4, effect="e2", end=1.5).judge(response("e2"))
    assert verdict.violations == []
    assert (verdict.counts["takeovers"], verdict.counts["after_a_stall"]) == (1, 1)


def test_judge_accepts_an_unknown_outcome_of_a_killed_owner_at_most_one_run() -> None:
    died = JournalBuilder().run(1, 0.0, effect="e1", killed=0.2)
    verdict = died.judge(response(**UNKNOWN), mode="M")
    assert (verdict.violations, verdict.counts["unknown"]) == ([], 1)


def test_judge_accepts_an_unknown_outcome_of_an_unconfirmed_claim_at_most_one_run() -> None:
    story = JournalBuilder()
    story.events = [
        {"what": "asked", "at": 0.0, "key": KEY, "owner": "1", "pid": 1},
        {"what": "ended", "at": 0.1, "worker": 1, "code": -signal.SIGKILL},
    ]
    assert story.judge(response(**UNKNOWN), mode="M").violations == []
    story.events[1] = {"what": "told", "at": 1.1, "owner": "1", "pid": 1, "answered": False}
    assert story.judge(response(**UNKNOWN), mode="M").violations == []
    story.events[1]["answered"] = True
    assert story.judge(response(**UNKNOWN), mode="M").violations != []


BROKEN = {
    "I1: a takeover before the lease was over": taken_over(at=0.9).judge(response("e2")),
    "I2: a second effect although none is allowed": taken_over().judge(response("e2"), mode="M"),
    "I2: a second effect without a kill or a stall": JournalBuilder()
    .run(1, 0.0, effect="e1", end=0.1)
    .run(2, 0.2, effect="e2", end=0.3)
    .judge(response("e2")),
    "I3: two answers": one_run().judge(response(), response(digest="other")),
    "I4: a fence that falls": JournalBuilder()
    .run(1, 0.0, fence=8, killed=0.1)
    .run(2, 1.2, fence=7, attempt=2, effect="e1", end=1.3)
    .judge(response()),
    "I5: two owners recorded": JournalBuilder()
    .run(1, 0.0, effect="e1", end=1.3)
    .run(2, 1.2, attempt=2, effect="e2", end=1.4)
    .judge(response("e2")),
    "I6: a record that was granted again": JournalBuilder()
    .run(1, 0.0, effect="e1", end=0.1)
    .run(2, 1.2, attempt=2, effect="e2", end=1.3)
    .judge(response("e2")),
    "I6: a claim that was forgotten": JournalBuilder()
    .run(1, 0.0, end=0.4, held=False)
    .run(2, 0.5, effect="e1", end=0.6)
    .judge(response()),
    "I6: a recorded answer that is gone": one_run().judge(response(), response("e1", late=True)),
    "I6: a recorded answer that became unknown": one_run().judge(
        response(), response(**UNKNOWN, late=True), mode="M"
    ),
    "201 to a stranger: a body that is not the first one's": one_run().judge(
        response(), unexpected=["201 to a stranger"]
    ),
    "I10: a client without an answer": one_run().judge(stuck=1),
    "I10: an unknown outcome without a kill": one_run().judge(response(**UNKNOWN), mode="M"),
    "I10: an unknown outcome although the promise excludes it": JournalBuilder()
    .run(1, 0.0, killed=0.1)
    .judge(response(**UNKNOWN)),
    "I12: a run without an end": JournalBuilder().run(1, 0.0, effect="e1").judge(response()),
    "I15: an answer without its effect": one_run().judge(response("e9")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_judge_reports_each_broken_invariant(name: str) -> None:
    found = BROKEN[name].violations
    assert found
    assert name.partition(":")[0] in " ".join(found)


def test_judge_reports_an_effect_without_a_claim() -> None:
    story = one_run()
    story.events.append({"what": "effect", "at": 0.3, "pid": 1, "owner": "3", "key": KEY, "id": "e2"})
    assert any(sentence.startswith("I11") for sentence in story.judge(response()).violations)


@pytest.mark.parametrize("freezes", [True, False])
def test_every_fourth_fault_freezes_unless_freezes_are_off(
    freezes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _pid, sent: signals.append(sent))
    board = Board(["a step"])
    fate = Fate(board, Journal(tmp_path / "journal"), random.Random(1), every=1, freezes=freezes)
    for _ in range(8):
        fate.at("a step")
    fourth = signal.SIGSTOP if freezes else signal.SIGKILL
    assert signals == [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, fourth] * 2
    assert sum(board.freezes.values()) == (2 if freezes else 0)
