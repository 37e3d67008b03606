"""The protocol alone: the actions that it yields, its delays, and the wait that it reports."""

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


def begin_with(
    *, wait: float = 0.0, random: float = 0.0, duplicate_here: bool = False, **policy: Any
) -> Begin:
    settings = Policy(**policy)
    return begin(KEY, SAME, policy=settings, wait=wait, random=lambda: random, duplicate_here=duplicate_here)


def successors_record(state: State, fingerprint: Fingerprint = SAME, *, lease_left: float = 30.0) -> Record:
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
    """The actions that *steps* yielded, and its verdict if the last event ended it."""
    actions = [next(steps)]
    try:
        for event in events:
            actions.append(steps.send(event))  # noqa: PERF401 - it ends by StopIteration
    except StopIteration as end:
        return actions, end.value
    return actions, None


def test_polls_double_their_delay_within_the_remaining_wait() -> None:
    actions, _ = play(begin_with(wait=1.0), RUNNING, WaitEnded(0.1), RUNNING, WaitEnded(0.3), RUNNING)
    assert actions == [ACQUIRE, Await(0.01, 1.0), ACQUIRE, Await(0.02, 0.9), ACQUIRE, Await(0.04, 0.7)]


def test_random_factor_lengthens_the_poll_delay() -> None:
    actions, _ = play(begin_with(wait=1.0, random=0.5), RUNNING)
    assert actions == [ACQUIRE, Await(0.015, 1.0)]


def test_wait_for_a_local_duplicate_counts_as_one_poll() -> None:
    actions, _ = play(begin_with(wait=1.0, duplicate_here=True), WaitEnded(0.25), RUNNING)
    assert actions == [Await(0.01, 1.0), ACQUIRE, Await(0.02, 0.75)]


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
def test_verdict_reports_how_long_the_request_waited(
    duplicate_here: bool, events: list[Any], waited: float
) -> None:
    def verdict(last: Any, before: list[Any] = events) -> Any:
        return play(begin_with(wait=1.0, duplicate_here=duplicate_here), *before, last)[1]

    assert verdict(Acquired(CLAIM)) == Execute(CLAIM, waited)
    assert verdict(DONE) == Replay(DONE, waited)
    if events:
        assert verdict(WaitEnded(waited, DONE), events[:-1]) == Replay(DONE, waited)


def test_request_is_refused_without_another_poll_once_its_wait_is_over() -> None:
    actions, verdict = play(begin_with(wait=1.0), RUNNING, WaitEnded(1.0), RUNNING)
    assert actions == [ACQUIRE, Await(0.01, 1.0), ACQUIRE]
    assert isinstance(verdict, Refuse)


@pytest.mark.parametrize(
    ("lease_left", "random", "seconds"), [(30.0, 0.0, 1), (30.0, 0.99, 4), (1.5, 0.99, 2)]
)
def test_retry_after_is_derived_from_the_lease_of_the_running_owner(
    lease_left: float, random: float, seconds: int
) -> None:
    refused = play(begin_with(random=random), Running(SAME, lease_left))[1]
    successor = successors_record(State.RUNNING, lease_left=lease_left)
    lost = play(record(CLAIM, SAME, random=lambda: random), False, successor)[1]
    for verdict in (refused, lost):
        assert isinstance(verdict.error, InProgress)
        assert verdict.error.retry_after == seconds


def test_acquire_without_a_reply_is_followed_by_a_late_release() -> None:
    for before in ([], [RUNNING, WaitEnded(0.1)]):
        actions, verdict = play(begin_with(wait=1.0), *before, DOWN, None)
        assert (actions[-1], verdict) == (RELEASE_LATER, Refuse(DOWN))
        actions, verdict = play(begin_with(wait=1.0, on_store_error="bypass"), *before, DOWN, None)
        assert (actions[-1], verdict) == (RELEASE_LATER, Bypass(DOWN))


def test_complete_is_tried_three_times_with_growing_delays() -> None:
    steps = record(CLAIM, SAME, random=lambda: 0.0)
    actions, verdict = play(steps, DOWN, None, DOWN, None, DOWN)
    assert actions == [COMPLETE, Sleep(0.05), COMPLETE, Sleep(0.25), COMPLETE]
    assert verdict == Unrecorded(DOWN)


def test_complete_is_not_retried_after_a_corrupt_record() -> None:
    unreadable = CorruptRecord("?")
    assert play(record(CLAIM, SAME, random=lambda: 0.0), unreadable) == ([COMPLETE], Unrecorded(unreadable))


def test_claim_is_unconfirmed_only_if_no_grant_was_received() -> None:
    assert confirmed(CLAIM)
    assert not confirmed(unconfirmed(KEY, CLAIM.owner))


@pytest.mark.parametrize("state", State)
def test_lost_claim_sends_its_own_response_if_the_key_went_to_another_request(state: State) -> None:
    other = successors_record(state, Fingerprint(b"another"))
    assert play(record(CLAIM, SAME, random=lambda: 0.0), False, other)[1] == Forgotten()


@pytest.mark.rule("E8")
def test_lost_claim_is_refused_if_the_successors_record_cannot_be_read() -> None:
    """The successor may have answered already: another response could contradict its record."""
    assert play(record(CLAIM, SAME, random=lambda: 0.0), False, DOWN)[1] == Refuse(DOWN)


def test_release_is_repeated_only_without_a_reply() -> None:
    assert play(release(), False) == ([RELEASE], None)
    assert play(release(), DOWN) == ([RELEASE, RELEASE_LATER], None)


def test_lost_claim_is_superseded_with_age_and_expiry_of_the_successors_record() -> None:
    actions, verdict = play(
        record(CLAIM, SAME, random=lambda: 0.0), False, successors_record(State.COMPLETED)
    )
    assert (actions, verdict) == ([COMPLETE, GET_RECORD], Superseded(Completed(SAME, b"{}", 3.0, 57.0)))


RENEWALS = [
    ([True], "held", [RENEW]),
    ([False, None], "lost", [RENEW, GET_RECORD]),
    ([False, successors_record(State.RUNNING)], "lost", [RENEW, GET_RECORD]),
    (
        [False, dataclasses.replace(successors_record(State.COMPLETED), owner=CLAIM.owner)],
        "settled",
        [RENEW, GET_RECORD],
    ),
]


@pytest.mark.rule("E3")
@pytest.mark.parametrize(("events", "result", "actions"), RENEWALS)
def test_refused_renewal_means_lost_unless_the_handler_recorded_its_outcome(
    events: list[Any], result: str, actions: list[Any]
) -> None:
    assert play(renew(CLAIM), *events) == (actions, result)


def test_late_release_is_tried_four_times_with_growing_delays() -> None:
    actions, failure = play(release_late(CLAIM), DOWN, None, DOWN, None, DOWN, None, DOWN)
    assert actions == [RELEASE, Sleep(0.25), RELEASE, Sleep(1.0), RELEASE, Sleep(4.0), RELEASE]
    assert failure is DOWN


def test_late_release_of_an_unknown_claim_is_repeated_only_if_the_claim_was_unconfirmed() -> None:
    assert play(release_late(CLAIM), False) == ([RELEASE], None)
    assert play(release_late(unconfirmed(KEY, CLAIM.owner)), False, None, True) == (
        [RELEASE, Sleep(0.25), RELEASE],
        None,
    )


@pytest.mark.parametrize("reply", [RUNNING, Completed(Fingerprint(b"another"), b"{}", 1.0, 59.0), DOWN])
def test_reply_without_an_immediate_verdict_is_left_to_the_protocol(reply: Any) -> None:
    assert verdict_of(reply, SAME) is None
