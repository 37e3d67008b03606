"""
The protocol of one request as a deterministic machine: events in, actions out.

`begin` decides whether to run, replay or refuse; `record` and `give_up` put an end to a run. Each is a generator that
yields an action and is sent the event it led to. Nothing here knows a clock, a socket or chance, so a test can play
every interleaving of faults and twins against it, and the engines that perform the actions are thin.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from idempotency._core import delays
from idempotency._core.decide import Execute, Refuse, Replay, Wait, decide
from idempotency._core.errors import InProgress, StoreError, StoreUnavailable
from idempotency._core.policy import Policy
from idempotency._core.recorded import check_seconds
from idempotency._core.types import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Running,
    State,
    StorageKey,
    key_id,
)

__all__ = [
    "Acquire",
    "Action",
    "Await",
    "Begin",
    "Bypass",
    "Complete",
    "Ending",
    "Event",
    "Forgotten",
    "GetRecord",
    "Sleep",
    "Recorded",
    "Release",
    "ReleaseLater",
    "Superseded",
    "Unrecorded",
    "Verdict",
    "WaitEnded",
    "begin",
    "give_up",
    "is_confirmed",
    "is_lost",
    "record",
    "unconfirmed",
]


# Actions: what the engine is asked to do.


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask the store for the claim. Event: its reply, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class Await:
    """
    Wait for the twin: *poll* seconds before the store is worth asking again, *limit* seconds at the very most.

    Event: `WaitEnded`.
    """

    poll: float
    limit: float


@dataclass(frozen=True, slots=True)
class Complete:
    """Ask the store to record the outcome. Event: its answer, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class Release:
    """Ask the store to forget the claim. Event: its answer, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class ReleaseLater:
    """Have the store forget whatever this owner may hold, while the request goes on. Event: None, at once."""


@dataclass(frozen=True, slots=True)
class GetRecord:
    """Ask the store for the record as it stands (E8). Event: the record, None, or the StoreError it raised."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let *seconds* pass. Event: None."""

    seconds: float


ACQUIRE, COMPLETE, RELEASE, RELEASE_LATER, GET_RECORD = (
    Acquire(),
    Complete(),
    Release(),
    ReleaseLater(),
    GetRecord(),
)

Action: TypeAlias = Acquire | Await | Complete | Release | ReleaseLater | GetRecord | Sleep


# Events beside the store's own replies.


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """
    The wait is over.

    Attributes:
        waited: Seconds since the request began to wait, in all.
        completed: The twin's outcome where the process that recorded it is this one; then the store need not be asked.
    """

    waited: float
    completed: Completed | None = None


Event: TypeAlias = Acquired | Running | Completed | WaitEnded | Record | StoreError | bool | None


# Verdicts.


@dataclass(frozen=True, slots=True)
class Bypass:
    """Run the operation unprotected: the store failed with *error* and the policy prefers an answer."""

    error: StoreError


Verdict: TypeAlias = Execute | Replay | Refuse | Bypass


@dataclass(frozen=True, slots=True)
class Recorded:
    """Done: the record is what the caller presented."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """The claim was lost and its successor is done: its record is the answer (E8)."""

    completed: Completed


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The claim was lost and the record is gone or another's: our own answer is the best there is (E8)."""


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """The store did not confirm: our own answer goes out and the lease decides about a retry (E8)."""

    error: StoreError


RECORDED = Recorded()

Ending: TypeAlias = Recorded | Superseded | Forgotten | Unrecorded | Refuse

Begin: TypeAlias = Generator[Action, Event, Verdict]
Chance: TypeAlias = Callable[[], float]


def begin(
    key: StorageKey,
    fingerprint: Fingerprint,
    *,
    policy: Policy,
    wait: float,
    chance: Chance,
    duplicate_here: bool = False,
) -> Begin:
    """
    From a keyed request to a verdict.

    Args:
        wait: Seconds this request may wait for a running twin.
        chance: Draws from [0, 1), for delays.
        duplicate_here: A twin runs in this very process: wait for it before the store is asked (single flight).
    """
    waited, polls = 0.0, 0
    if duplicate_here:
        ended = yield Await(delays.poll_delay(0, chance()), wait)
        assert isinstance(ended, WaitEnded)
        waited, polls = ended.waited, 1
        if ended.completed is not None:
            return Replay(ended.completed, waited)
    while True:
        reply = yield ACQUIRE
        if isinstance(reply, Acquired):
            return Execute(reply.claim, waited)
        if isinstance(reply, StoreUnavailable):
            # The claim may have been granted without our hearing of it: free it by its token (fault 3).
            yield RELEASE_LATER
            return Bypass(reply) if policy.on_store_error == "bypass" else Refuse(reply)
        if isinstance(reply, StoreError):
            return Refuse(reply)  # an unreadable record is a fact, not an outage: never run beside it
        assert isinstance(reply, Running | Completed)
        decision = decide(reply, key=key, fingerprint=fingerprint, takeover=policy.takeover)
        if isinstance(decision, Replay):
            return Replay(decision.completed, waited)
        if not isinstance(decision, Wait):
            return decision
        if waited >= wait:
            retry_after = delays.retry_after(decision.lease_left, chance())
            return Refuse(InProgress(key_id=key_id(key), retry_after=retry_after))
        poll = delays.poll_delay(polls, chance(), decision.lease_left)
        ended = yield Await(poll, wait - waited)
        assert isinstance(ended, WaitEnded)
        waited, polls = ended.waited, polls + 1
        if ended.completed is not None:
            return Replay(ended.completed, waited)


def record(claim: Claim, fingerprint: Fingerprint, *, chance: Chance) -> Generator[Action, Event, Ending]:
    """From the end of a run to its record, before the first byte is sent (E1, E8)."""
    for delay in (*delays.COMPLETE_RETRIES, None):
        answer = yield COMPLETE
        if answer is True:
            return RECORDED
        if answer is False:
            return (yield from _lost(claim, fingerprint, chance))
        assert isinstance(answer, StoreError)
        if not isinstance(answer, StoreUnavailable) or delay is None:
            return Unrecorded(answer)
        yield Sleep(delay)
    raise AssertionError("unreachable")


def _lost(claim: Claim, fingerprint: Fingerprint, chance: Chance) -> Generator[Action, Event, Ending]:
    found = yield GET_RECORD
    match found:
        case Record(state=State.COMPLETED, outcome=bytes(outcome)) if found.fingerprint == fingerprint:
            return Superseded(Completed(fingerprint, outcome, found.age, found.expires_in))
        case Record(state=State.RUNNING) if (wrong := check_seconds(found.lease_left)) is not None:
            return Refuse(wrong)
        case Record(state=State.RUNNING) if found.fingerprint == fingerprint:
            return Refuse(
                InProgress(
                    key_id=key_id(claim.key), retry_after=delays.retry_after(found.lease_left, chance())
                )
            )
        case StoreError():
            return Refuse(found)  # somebody else may have answered already: ours could contradict it
        case _:
            return Forgotten()


def give_up(claim: Claim) -> Generator[Action, Event, None]:  # noqa: ARG001
    """Free the key of a run whose answer is not kept; where the store gives no answer, behind the request."""
    answer = yield RELEASE
    if isinstance(answer, StoreError):
        yield RELEASE_LATER


def is_lost(claim: Claim, found: Record | None) -> bool:
    """
    Whether *claim* no longer holds its key, given the record that was *found* after a renewal was refused.

    A renewal is refused too where the handler itself recorded its outcome (`complete_in`): then nothing is lost.
    """
    return found is None or found.owner != claim.owner


def unconfirmed(key: StorageKey, owner: Owner) -> Claim:
    """A claim that may have been granted without an answer: the owner alone guards its release."""
    return Claim(key, owner, attempt=0, fence=0)


def is_confirmed(claim: Claim) -> bool:
    """
    Whether the claim was granted for certain: then a store that does not know it has nothing to release.

    One that is not may be granted yet, by a call that nobody waits for any more: it is worth asking again.
    """
    return claim.attempt > 0
