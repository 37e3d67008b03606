"""
Makes every decision of one operation, from the store's first reply to its end; no other module decides.

`begin` leads from a keyed request to a verdict: run, replay, refuse or bypass. `renew` keeps a run's lease. `settle`
says whether its answer is recorded; `record`, `release` and `release_late` end it. Those with several steps are
generators: they yield an action (`idempotency._core.actions`) and are sent the event it led to. Nothing here knows a
clock, a socket or randomness. So tests play every interleaving of faults and concurrent duplicates against it, and the
engines are loops that perform what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Literal, TypeAlias

from idempotency._core import delays
from idempotency._core.actions import (
    ACQUIRE,
    COMPLETE,
    GET_RECORD,
    RECORDED,
    RELEASE,
    RELEASE_LATER,
    RENEW,
    Action,
    Await,
    Bypass,
    Ending,
    Event,
    Execute,
    Forgotten,
    Recorded,
    Refuse,
    Replay,
    Sleep,
    Superseded,
    Unrecorded,
    Verdict,
    WaitEnded,
)
from idempotency._core.errors import (
    FingerprintMismatch,
    IdempotencyError,
    InProgress,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
)
from idempotency._core.policy import Policy, unless_transient
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
    "NOT_ROUTED",
    "Begin",
    "begin",
    "confirmed",
    "follows_duplicate",
    "leads_duplicates",
    "record",
    "recorded",
    "release",
    "release_late",
    "renew",
    "settle",
    "unconfirmed",
    "verdict_of",
]

Begin: TypeAlias = Generator[Action, Event, Verdict]
Random: TypeAlias = Callable[[], float]

_new = tuple.__new__  # makes a named tuple for half of what its own constructor, a Python function, takes


# From a request to a verdict.


def follows_duplicate(wait: float) -> bool:
    """Whether a request that may wait *wait* seconds follows a duplicate in its process before it asks the store."""
    return wait > 0


def leads_duplicates(wait: float, policy: Policy) -> bool:
    """Whether concurrent duplicates of this run may wait, so that it should tell them its outcome."""
    return wait > 0 or policy.wait > 0 or policy.prefer_wait > 0


def verdict_of(reply: Event, fingerprint: Fingerprint, waited: float = 0.0) -> Execute | Replay | None:
    """The verdict that a reply alone gives, as the store's first reply nearly always does; None: go on with `begin`."""
    if isinstance(reply, Acquired):
        run: Execute = _new(Execute, (reply.claim, waited))
        return run
    if isinstance(reply, Completed) and reply.fingerprint == fingerprint:
        replay: Replay = _new(Replay, (reply, waited))
        return replay
    return None


def begin(
    key: StorageKey,
    fingerprint: Fingerprint,
    *,
    policy: Policy,
    wait: float,
    random: Random,
    duplicate_here: bool = False,
) -> Begin:
    """
    From a keyed request to a verdict.

    Args:
        wait: Seconds this request may wait for a running duplicate.
        random: Draws from [0, 1), for delays.
        duplicate_here: A duplicate runs in this very process: wait for it before the store is asked (single flight).
    """
    waited, polls = 0.0, 0
    if duplicate_here:
        ended = yield Await(delays.poll_delay(0, random()), wait)
        assert isinstance(ended, WaitEnded)
        waited, polls = ended.waited, 1
        if ended.completed is not None:
            return Replay(ended.completed, waited)
    while True:
        reply = yield ACQUIRE
        verdict = verdict_of(reply, fingerprint, waited)
        if verdict is not None:
            return verdict
        if isinstance(reply, StoreUnavailable):
            # The claim may have been granted without our hearing of it: free it by its token.
            yield RELEASE_LATER
            return Bypass(reply) if policy.on_store_error == "bypass" else Refuse(reply)
        if isinstance(reply, StoreError):
            return Refuse(reply)  # an unreadable record is a fact, not an outage: never run beside it
        assert isinstance(reply, Running | Completed)
        refused = _refusal(reply, key, fingerprint, policy)
        if refused is not None:
            return Refuse(refused)
        assert isinstance(reply, Running)
        if waited >= wait:
            retry_after = delays.retry_after(reply.lease_left, random())
            return Refuse(InProgress(key_id=key_id(key), retry_after=retry_after))
        poll = delays.poll_delay(polls, random(), reply.lease_left)
        ended = yield Await(poll, wait - waited)
        assert isinstance(ended, WaitEnded)
        waited, polls = ended.waited, polls + 1
        if ended.completed is not None:
            return Replay(ended.completed, waited)


def _refusal(
    reply: Running | Completed, key: StorageKey, fingerprint: Fingerprint, policy: Policy
) -> IdempotencyError | None:
    """
    Why a request may not wait for the record that has its key; None where it may.

    A different fingerprint is a mismatch whatever the record's state (draft -07, 2.7): also while the first request
    runs, and after its lease.
    """
    if isinstance(reply, Running) and (wrong := check_seconds(reply.lease_left)) is not None:
        return wrong
    if reply.fingerprint != fingerprint:
        return FingerprintMismatch(key_id=key_id(key))
    if isinstance(reply, Running) and reply.lease_left <= 0 and not policy.takeover:
        return OutcomeUnknown(key_id=key_id(key))
    return None


def unconfirmed(key: StorageKey, owner: Owner) -> Claim:
    """A claim that may have been granted without an answer: the owner alone guards its release."""
    return Claim(key, owner, attempt=0, fence=0)


# While it runs.


def renew(claim: Claim) -> Generator[Action, Event, Literal["held", "lost", "settled"]]:
    """
    One renewal of a run's lease (E3). A store that gives no answer ends it: the next renewal tries again.

    Returns:
        "lost" where the key went to somebody else or the record is gone; "settled" where the handler itself recorded
        its outcome (`complete_in`), so that there is nothing left to renew.
    """
    if (yield RENEW):
        return "held"
    found = yield GET_RECORD
    return "settled" if isinstance(found, Record) and found.owner == claim.owner else "lost"


# From the end of a run to the end of its claim.

# Refusals that a layer beside the handler gives, before anything happened: they must not use a key up.
_BEFORE_THE_HANDLER = frozenset({401, 403, 405})

NOT_ROUTED = frozenset({307, 404})
"""What a router says itself: not found, or try it with a slash at the end (a client repeats that with the same key)."""


def settle(
    status: int, *, policy: Policy, routed: bool = True, handled: bool = True
) -> Literal["keep", "release"]:
    """
    Whether an answer with *status* is recorded or frees its key.

    Args:
        routed: False where the scope shows no route of the framework's: then a 404 or a 307 is not an outcome.
        handled: False where it is known that no handler began: then nothing is an outcome, under any policy.
    """
    if not handled or not policy.keep(status):
        return "release"
    if policy.keep is unless_transient and (
        status in _BEFORE_THE_HANDLER or (status in NOT_ROUTED and not routed)
    ):
        return "release"
    return "keep"


def recorded(answer: Event) -> Recorded | None:
    """The ending that an answer alone gives, as the store's first one nearly always does; None: go on with `record`."""
    return RECORDED if answer is True else None


def record(claim: Claim, fingerprint: Fingerprint, *, random: Random) -> Generator[Action, Event, Ending]:
    """From the end of a run to its record, before the first byte is sent (E1, E8)."""
    for delay in (*delays.COMPLETE_RETRIES, None):
        answer = yield COMPLETE
        ending = recorded(answer)
        if ending is not None:
            return ending
        if answer is False:
            return (yield from _after_loss(claim, fingerprint, random))
        assert isinstance(answer, StoreError)
        if not isinstance(answer, StoreUnavailable) or delay is None:
            return Unrecorded(answer)
        yield Sleep(delay)
    raise AssertionError("unreachable")


def _after_loss(claim: Claim, fingerprint: Fingerprint, random: Random) -> Generator[Action, Event, Ending]:
    found = yield GET_RECORD
    match found:
        case Record(state=State.COMPLETED, outcome=bytes(outcome)) if found.fingerprint == fingerprint:
            return Superseded(Completed(fingerprint, outcome, found.age, found.expires_in))
        case Record(state=State.RUNNING) if (wrong := check_seconds(found.lease_left)) is not None:
            return Refuse(wrong)
        case Record(state=State.RUNNING) if found.fingerprint == fingerprint:
            return Refuse(
                InProgress(
                    key_id=key_id(claim.key), retry_after=delays.retry_after(found.lease_left, random())
                )
            )
        case StoreError():
            return Refuse(found)  # somebody else may have answered already: ours could contradict it
        case _:
            return Forgotten()


def release() -> Generator[Action, Event, None]:
    """Free the key of a run whose answer is not kept; where the store gives no answer, behind the request."""
    answer = yield RELEASE
    if isinstance(answer, Exception):
        yield RELEASE_LATER


def release_late(claim: Claim) -> Generator[Action, Event, Exception | None]:
    """
    Have the store forget *claim*, trying for a while; then its lease decides.

    Returns:
        What the store raised at the last try, if it did.
    """
    for delay in (*delays.RELEASE_RETRIES, None):
        answer = yield RELEASE
        # A claim that nobody confirmed may be granted yet, by a call that nobody waits for any more: ask again.
        if answer is True or (answer is False and confirmed(claim)):
            return None
        if delay is not None:
            yield Sleep(delay)
    return answer if isinstance(answer, Exception) else None


def confirmed(claim: Claim) -> bool:
    """Whether the claim was granted for certain: then a store that does not know it has nothing to release."""
    return claim.attempt > 0
