"""
Whether the promise was kept, from what the workers, their parent and the clients wrote down.

Pure: the tests feed it lies.

The invariants are numbered as in docs/reliability.md.
"""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from clients import Operation

from idempotency._core.key import storage_key

__all__ = ["Verdict", "judge"]

_RESOLUTION = 0.005  # s: Redis counts in milliseconds, and its clock is not ours


@dataclass
class Run:
    """
    One claim, from the grant to its end.

    Attributes:
        asked, granted: When the claim was asked for, and when its grant was known, on the machine's clock.
        signs: When the signs of life that the store confirmed were asked for, the claim itself among them.
        effects: The names of the effects made under it.
        ended: When the store was told of its end, whatever it answered; None where the process died before.
        held, released, refused: Whether the store took the outcome, freed the key (or may have), knew of another owner.
    """

    key: str
    owner: str
    pid: int
    asked: float
    granted: float
    attempt: int
    fence: int
    signs: list[float] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    ended: float | None = None
    held: bool = False
    released: bool = False
    refused: bool = False


@dataclass
class Verdict:
    """
    Counts for the report, and each violation in a sentence; none means that the promise was kept.

    Attributes:
        recoveries: Seconds from the death of an owner to the grant of its key to the next.
    """

    counts: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def violated(self, count: str, sentence: str) -> None:
        """The promise was broken."""
        self.counts[count] += 1
        self.violations.append(sentence)


@dataclass
class History:
    """
    What the journal says.

    Attributes:
        runs: Of each key, by fence.
        killed: When each process that was killed was found dead.
        unheard: The keys that somebody asked for and got no answer: it died, or the store was not there in time. The
            claim may have been granted all the same, and is released, or lapses.
        freed: When such a claim on a key was released; before that it may have taken the key over.
        impossible: What cannot have happened.
    """

    runs: dict[str, list[Run]]
    killed: dict[int, float]
    unheard: set[str]
    freed: dict[str, list[float]]
    impossible: list[str]


def read_history(events: Iterable[Mapping[str, Any]]) -> History:
    """Put the events of all processes together."""
    by_owner: dict[str, Run] = {}
    killed: dict[int, float] = {}
    asking: dict[str, str] = {}
    freed: dict[str, list[float]] = defaultdict(list)
    impossible = []
    for event in events:
        what = event["what"]
        if what == "ended":
            if event["code"] == -signal.SIGKILL:
                killed[event["worker"]] = event["at"]
            continue
        if what == "asked":
            asking[event["owner"]] = event["key"]
            continue
        if what == "claimed" or (what == "told" and event["answered"]):
            asking.pop(event["owner"], None)
        if what == "told":
            continue
        if what == "claimed":
            by_owner[event["owner"]] = Run(
                key=event["key"],
                owner=event["owner"],
                pid=event["pid"],
                asked=event["asked"],
                granted=event["at"],
                attempt=event["attempt"],
                fence=event["fence"],
                signs=[event["asked"]],
            )
        elif "owner" in event and event["owner"] not in by_owner:
            if what != "released":  # an unconfirmed claim is released by its owner's name alone
                impossible.append(f"I11: {what} without a confirmed claim on {event['key']}")
            elif event["held"] is not False:
                freed[event["key"]].append(event["at"])
        elif what == "effect":
            by_owner[event["owner"]].effects.append(event["id"])
        elif what == "renewed":
            if event["held"]:
                by_owner[event["owner"]].signs.append(event["asked"])
        elif what in {"completed", "released"}:
            run = by_owner[event["owner"]]
            run.ended = event["at"]
            run.held = run.held or (what == "completed" and bool(event["held"]))
            run.refused = run.refused or (what == "completed" and event["held"] is False)
            # No answer: the key may be free.
            run.released = run.released or (what == "released" and event["held"] is not False)
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(by_owner.values(), key=lambda run: run.fence):
        runs[run.key].append(run)
    return History(runs, killed, set(asking.values()), freed, impossible)


def judge(
    mode: str,
    lease: float,
    events: Iterable[Mapping[str, Any]],
    operations: Iterable[Operation],
    rows: Iterable[tuple[str, str]] = (),
) -> Verdict:
    """
    Hold a run against its promise.

    Args:
        mode: "T", "M" or "L".
        rows: The effects in the database, as (name, storage key), for T.
    """
    history = read_history(events)
    verdict = Verdict()
    for sentence in history.impossible:
        verdict.violated("impossible", sentence)
    effects: dict[str, list[str]] = defaultdict(list)
    for name, key in rows:
        effects[key].append(name)
    for key, runs in history.runs.items():
        for run in runs:
            effects[key] += run.effects
        _judge_store(key, runs, lease, history, verdict)
    for key, of_key in effects.items():
        _judge_effects(key, of_key, mode, history, verdict)
    for operation in operations:
        key = storage_key(operation.tenant, operation.key)
        _judge_answers(operation, key, effects[key], verdict)
        if any(answer.problem == "outcome-unknown" for answer in operation.answers):
            _judge_unknown(operation, key, mode, lease, history, verdict)
    verdict.counts["effects"] = sum(map(len, effects.values()))
    return verdict


def _judge_store(key: str, runs: list[Run], lease: float, history: History, verdict: Verdict) -> None:
    """What the store granted and took (I1, I4, I5, I6) and whether every run came to its end (I12)."""
    for earlier, later in pairwise(runs):
        if earlier.fence >= later.fence or earlier.asked > later.granted:
            verdict.violated("fences", f"I4: the fences of {key} do not rise with its grants")
        if _took_over(earlier, later, history):
            verdict.counts["takeovers"] += 1
            last = max(sign for sign in earlier.signs if sign <= later.granted)
            if later.granted - last < lease - _RESOLUTION:
                after = f"{later.granted - last:.3f} s after a sign of life"
                verdict.violated("early", f"I1: {key} was taken over {after}")
            if _died(earlier, history):
                verdict.recoveries.append(later.granted - history.killed[earlier.pid])
        elif not (earlier.released or _died(earlier, history)):
            verdict.violated("forgotten", f"I6: the record of {key} was lost")
        if earlier.held and earlier.ended is not None and later.asked > earlier.ended:
            verdict.violated("forgotten", f"I6: {key} was recorded and granted again")
    if sum(run.held for run in runs) > 1:
        verdict.violated("two_records", f"I5: two owners recorded {key}")
    for run in runs:
        if len(run.effects) > 1:
            verdict.violated("impossible", f"one run of {key} made {len(run.effects)} effects")
        if run.refused:
            verdict.counts["late_writes_refused"] += 1
        if run.ended is None and not _died(run, history):
            verdict.violated("cut", f"I12: a run of {key} neither ended nor died")


def _judge_effects(key: str, effects: list[str], mode: str, history: History, verdict: Verdict) -> None:
    """How often it happened (I2)."""
    if len(effects) <= 1:
        return
    verdict.counts["duplicates"] += len(effects) - 1
    if mode != "L":
        verdict.violated("unexplained", f"I2: {key} has {len(effects)} effects")
        return
    runs = history.runs[key]
    # An owner that died or stalled was taken over, and not before its lease was over: that is checked above.
    replaced = [run for run, after in pairwise(runs) if run.effects and _took_over(run, after, history)]
    for run in replaced:
        verdict.counts["after_a_kill" if _died(run, history) else "after_a_stall"] += 1
    if len(effects) - len(replaced) > 1:
        owners = f"{len(replaced)} owners that died or stalled"
        verdict.violated("unexplained", f"I2: {key} has {len(effects)} effects and {owners}")


def _judge_answers(operation: Operation, key: str, effects: list[str], verdict: Verdict) -> None:
    """What the clients were told (I3, I6, I7, I10, I15)."""
    for unexpected in operation.unexpected:
        verdict.violated("unexpected", f"{key} was answered {unexpected}")
    for _ in range(operation.stuck):
        verdict.violated("stuck", f"I10: a client of {key} got no final answer")
    successes = [answer for answer in operation.answers if answer.status == 201]
    marked = {answer.digest for answer in successes if answer.marked}
    verdict.counts["unmarked"] += sum(not answer.marked for answer in successes)
    if len(marked) > 1:
        verdict.violated("changed", f"I3: {key} was answered in {len(marked)} ways")
    for answer in successes:
        if answer.effect not in effects:
            sentence = f"I15: {key} was answered with {answer.effect}, which never happened"
            verdict.violated("phantom", sentence)
    recorded = any(answer.marked and not answer.late for answer in successes)
    if recorded and any(answer.late and not answer.replayed for answer in operation.answers):
        verdict.violated("lost", f"I6: {key} was recorded, and its answer is gone")


def _judge_unknown(
    operation: Operation, key: str, mode: str, lease: float, history: History, verdict: Verdict
) -> None:
    """Only at most once may say that it does not know, and only where an owner died or stalled (I10)."""
    verdict.counts["unknown"] += 1
    if mode != "M":
        verdict.violated("unexpected", f"I10: {key} was answered outcome-unknown")
    elif key not in history.unheard and not any(_lapsed(run, lease, history) for run in history.runs[key]):
        verdict.violated("untraced", f"I10: {key} is unknown, and its owner neither died nor stalled")


def _took_over(earlier: Run, later: Run, history: History) -> bool:
    """Whether the key passed on because the lease was over: to the later one, or by a claim that nobody heard of."""
    return later.attempt > 1 or any(
        earlier.asked <= at <= later.granted for at in history.freed.get(later.key, ())
    )


def _died(run: Run, history: History) -> bool:
    return run.ended is None and run.pid in history.killed


def _lapsed(run: Run, lease: float, history: History) -> bool:
    """Whether its process died before its end, or went a whole lease without a sign of life."""
    if run.ended is None:
        return _died(run, history)
    times = [*run.signs, run.ended]
    return any(after - before >= lease - _RESOLUTION for before, after in pairwise(times))
