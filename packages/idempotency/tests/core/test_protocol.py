"""The protocol by itself: what it asks for, when, and how long it says that it waited."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from idempotency import Policy, StorageKey
from idempotency._core.actions import (
    ACQUIRE,
    COMPLETE,
    GET_RECORD,
    RELEASE,
    RELEASE_LATER,
    RENEW,
    Await,
    Bypass,
    Execute,
    Forgotten,
    Refuse,
    Replay,
    Sleep,
    Superseded,
    Unrecorded,
    WaitEnded,
)
from idempotency._core.errors import CorruptRecord, InProgress, StoreUnavailable
from idempotency._core.protocol import (
    Begin,
    begin,
    confirmed,
    record,
    release,
    release_late,
    renew,
    unconfirmed,
    verdict_of,
)
from idempotency._core.types import Acquired, Claim, Completed, Fingerprint, Owner, Record, Running, State

KEY, SAME = StorageKey("k"), Fingerprint(b"f")
CLAIM = Claim(KEY, Owner(b"o" * 16), 1, 7)
RUNNING = Running(SAME, 30.0)
DONE = Completed(SAME, b"{}", 1.0, 59.0)
DOWN = StoreUnavailable("no reply")


def asking(*, wait: float = 0.0, random: float = 0.0, duplicate_here: bool = False, **policy: Any) -> Begin:
    settings = Policy(**policy)
    return begin(KEY, SAME, policy=settings, wait=wait, random=lambda: random, duplicate_here=duplicate_here)


def taken(state: State, fingerprint: Fingerprint = SAME, *, lease_left: float = 30.0) -> Record:
    """The record of a successor."""
    over = state is State.COMPLETED
    return Record(
        key=KEY,
        state=state,
        fingerprint=fingerprint,
        owner=Owner(b"p" * 16),
        attempt=2,
        fence=8,
        outcome=b"{}" if over else None,
        lease_left=0.0 if over else lease_left,
        age=3.0 if over else 0.0,
        expires_in=57.0,
    )


def play(steps: Any, *events: Any) -> tuple[list[Any], Any]:
    """Returns the actions asked for, and the verdict where the last event brings one."""
    asked = [next(steps)]
    try:
        for event in events:
            asked.append(steps.send(event))  # noqa: PERF401 - it ends by StopIteration
    except StopIteration as end:
        return asked, end.value
    return asked, None


def test_each_pause_of_a_waiter_is_twice_the_last_and_none_outlasts_its_patience() -> None:
    asked, _ = play(asking(wait=1.0), RUNNING, WaitEnded(0.1), RUNNING, WaitEnded(0.3), RUNNING)
    assert asked == [ACQUIRE, Await(0.01, 1.0), ACQUIRE, Await(0.02, 0.9), ACQUIRE, Await(0.04, 0.7)]


def test_randomness_spreads_the_pauses_of_waiters() -> None:
    asked, _ = play(asking(wait=1.0, random=0.5), RUNNING)
    assert asked == [ACQUIRE, Await(0.015, 1.0)]


def test_a_duplicate_that_ended_without_an_outcome_counts_as_one_poll() -> None:
    asked, _ = play(asking(wait=1.0, duplicate_here=True), WaitEnded(0.25), RUNNING)
    assert asked == [Await(0.01, 1.0), ACQUIRE, Await(0.02, 0.75)]


@pytest.mark.parametrize(
    ("duplicate_here", "events", "waited"),
    [
        (False, [], 0.0),
        (False, [RUNNING, WaitEnded(0.1)], 0.1),
        (False, [RUNNING, WaitEnded(0.1), RUNNING, WaitEnded(0.3)], 0.3),
        (True, [WaitEnded(0.2)], 0.2),
        (True, [WaitEnded(0.2), RUNNING, WaitEnded(0.5)], 0.5),
    ],
)
def test_a_verdict_says_how_long_was_waited_for_it(
    duplicate_here: bool, events: list[Any], waited: float
) -> None:
    def verdict(last: Any, before: list[Any] = events) -> Any:
        return play(asking(wait=1.0, duplicate_here=duplicate_here), *before, last)[1]

    assert verdict(Acquired(CLAIM)) == Execute(CLAIM, waited)
    assert verdict(DONE) == Replay(DONE, waited)
    if events:
        assert verdict(WaitEnded(waited, DONE), events[:-1]) == Replay(DONE, waited)


def test_a_waiter_whose_patience_is_over_asks_no_more() -> None:
    asked, verdict = play(asking(wait=1.0), RUNNING, WaitEnded(1.0), RUNNING)
    assert asked == [ACQUIRE, Await(0.01, 1.0), ACQUIRE]
    assert isinstance(verdict, Refuse)


@pytest.mark.parametrize(
    ("lease_left", "random", "seconds"), [(30.0, 0.0, 1), (30.0, 0.99, 4), (1.5, 0.99, 2)]
)
def test_a_client_is_told_to_come_back_by_the_lease_of_who_runs(
    lease_left: float, random: float, seconds: int
) -> None:
    refused = play(asking(random=random), Running(SAME, lease_left))[1]
    successor = taken(State.RUNNING, lease_left=lease_left)
    lost = play(record(CLAIM, SAME, random=lambda: random), False, successor)[1]
    for verdict in (refused, lost):
        assert isinstance(verdict.error, InProgress)
        assert verdict.error.retry_after == seconds


def test_a_store_that_is_silent_at_any_question_may_have_granted_the_claim() -> None:
    for before in ([], [RUNNING, WaitEnded(0.1)]):
        asked, verdict = play(asking(wait=1.0), *before, DOWN, None)
        assert (asked[-1], verdict) == (RELEASE_LATER, Refuse(DOWN))
        asked, verdict = play(asking(wait=1.0, on_store_error="bypass"), *before, DOWN, None)
        assert (asked[-1], verdict) == (RELEASE_LATER, Bypass(DOWN))


def test_a_record_is_tried_three_times_with_growing_pauses() -> None:
    steps = record(CLAIM, SAME, random=lambda: 0.0)
    asked, ending = play(steps, DOWN, None, DOWN, None, DOWN)
    assert asked == [COMPLETE, Sleep(0.05), COMPLETE, Sleep(0.25), COMPLETE]
    assert ending == Unrecorded(DOWN)


def test_an_unreadable_record_is_not_asked_for_again() -> None:
    unreadable = CorruptRecord("?")
    assert play(record(CLAIM, SAME, random=lambda: 0.0), unreadable) == ([COMPLETE], Unrecorded(unreadable))


def test_a_claim_confirmed_from_its_first_attempt_on_unless_nobody_heard_of_it() -> None:
    assert confirmed(CLAIM)
    assert not confirmed(unconfirmed(KEY, CLAIM.owner))


@pytest.mark.parametrize("state", State)
def test_a_lost_claim_whose_key_went_to_another_request_gives_its_own_answer(state: State) -> None:
    stranger = taken(state, Fingerprint(b"another"))
    assert play(record(CLAIM, SAME, random=lambda: 0.0), False, stranger)[1] == Forgotten()


@pytest.mark.rule("E8")
def test_a_caller_whose_claim_is_unknown_does_not_contradict_the_record() -> None:
    """Somebody else may have answered already."""
    assert play(record(CLAIM, SAME, random=lambda: 0.0), False, DOWN)[1] == Refuse(DOWN)


def test_a_key_that_the_store_freed_is_not_freed_again() -> None:
    assert play(release(), False) == ([RELEASE], None)
    assert play(release(), DOWN) == ([RELEASE, RELEASE_LATER], None)


def test_a_lost_claim_answers_with_the_age_and_the_end_of_its_successors_record() -> None:
    asked, ending = play(record(CLAIM, SAME, random=lambda: 0.0), False, taken(State.COMPLETED))
    assert (asked, ending) == ([COMPLETE, GET_RECORD], Superseded(Completed(SAME, b"{}", 3.0, 57.0)))


RENEWALS = [
    ([True], "held", [RENEW]),
    ([False, None], "lost", [RENEW, GET_RECORD]),
    ([False, taken(State.RUNNING)], "lost", [RENEW, GET_RECORD]),
    ([False, dataclasses.replace(taken(State.COMPLETED), owner=CLAIM.owner)], "settled", [RENEW, GET_RECORD]),
]


@pytest.mark.rule("E3")
@pytest.mark.parametrize(("events", "result", "asked"), RENEWALS)
def test_a_refused_renewal_is_lost_unless_the_handler_recorded_its_own_outcome(
    events: list[Any], result: str, asked: list[Any]
) -> None:
    assert play(renew(CLAIM), *events) == (asked, result)


def test_a_late_release_is_tried_four_times_with_growing_pauses() -> None:
    asked, failure = play(release_late(CLAIM), DOWN, None, DOWN, None, DOWN, None, DOWN)
    assert asked == [RELEASE, Sleep(0.25), RELEASE, Sleep(1.0), RELEASE, Sleep(4.0), RELEASE]
    assert failure is DOWN


def test_only_an_unconfirmed_claim_is_released_again_when_the_store_does_not_know_it() -> None:
    assert play(release_late(CLAIM), False) == ([RELEASE], None)
    assert play(release_late(unconfirmed(KEY, CLAIM.owner)), False, None, True) == (
        [RELEASE, Sleep(0.25), RELEASE],
        None,
    )


@pytest.mark.parametrize("reply", [RUNNING, Completed(Fingerprint(b"another"), b"{}", 1.0, 59.0), DOWN])
def test_a_reply_that_gives_no_verdict_alone_is_left_to_the_protocol(reply: Any) -> None:
    assert verdict_of(reply, SAME) is None
