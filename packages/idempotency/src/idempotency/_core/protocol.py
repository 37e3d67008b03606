"""
Makes every decision of one operation, from the store's first reply to its end; no other module decides.

`begin` takes a keyed request to a verdict: run, replay, refuse or bypass. `renew` renews the lease of a run. `settle`
says whether the answer is recorded; `record`, `release` and `release_late` end the claim. Functions with several steps
are generators: they yield an action (`idempotency._core.actions`) and are sent the event that follows from it. Nothing
here uses a clock, a socket or randomness. So tests can try every interleaving of faults and concurrent duplicates, and
an engine is a loop that performs the actions.
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

_new = tuple.__new__  # builds a named tuple in half the time of its constructor, a Python function


# From a request to a verdict.


def follows_duplicate(wait: float) -> bool:
    """Whether a request that may wait *wait* seconds waits for a duplicate in this process before it asks the store."""
    return wait > 0


def leads_duplicates(wait: float, policy: Policy) -> bool:
    """Whether concurrent duplicates may wait for this run, so that it has to tell them its outcome."""
    return wait > 0 or policy.wait > 0 or policy.prefer_wait > 0


def verdict_of(reply: Event, fingerprint: Fingerprint, waited: float = 0.0) -> Claim | Replay | None:
    """
    What *reply* alone decides, as the first reply nearly always does; None: go on with `begin`.

    Returns:
        The claim to run the operation under, or what to replay.
    """
    if isinstance(reply, Acquired):
        return reply.claim
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
        duplicate_here: Whether a duplicate runs in this process: wait for it before asking the store (single flight).
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
        decided = verdict_of(reply, fingerprint, waited)
        if decided is not None:
            return Execute(decided, waited) if isinstance(decided, Claim) else decided
        if isinstance(reply, StoreUnavailable):
            # The store may have granted the claim although its reply was lost: release it by its owner.
            yield RELEASE_LATER
            return Bypass(reply) if policy.on_store_error == "bypass" else Refuse(reply)
        if isinstance(reply, StoreError):
            return Refuse(reply)  # the record exists but cannot be read: the operation must not run
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
    Why a request may not wait for the record under its key; None if it may.

    A different fingerprint is a mismatch in every state of the record (draft -07, 2.7), even while the first request
    runs and after its lease has lapsed.
    """
    if isinstance(reply, Running) and (wrong := check_seconds(reply.lease_left)) is not None:
        return wrong
    if reply.fingerprint != fingerprint:
        return FingerprintMismatch(key_id=key_id(key))
    if isinstance(reply, Running) and reply.lease_left <= 0 and not policy.takeover:
        return OutcomeUnknown(key_id=key_id(key))
    return None


def unconfirmed(key: StorageKey, owner: Owner) -> Claim:
    """A claim whose grant is not known; the owner is enough to release it."""
    return Claim(key, owner, attempt=0, fence=0)


# While the operation runs.


def renew(claim: Claim) -> Generator[Action, Event, Literal["held", "lost", "settled"]]:
    """
    One renewal of a run's lease (E3). If the store gives no answer, the renewal ends and the next one tries again.

    Returns:
        "lost" if another owner holds the key or the record is gone; "settled" if the handler itself recorded its
        outcome (`complete_in`), so that there is nothing left to renew.
    """
    if (yield RENEW):
        return "held"
    found = yield GET_RECORD
    return "settled" if isinstance(found, Record) and found.owner == claim.owner else "lost"


# From the end of a run to the end of its claim.

# Refusals that usually come from a layer before the handler, so that nothing has happened: they free the key.
_BEFORE_THE_HANDLER = frozenset({401, 403, 405})

NOT_ROUTED = frozenset({307, 404})
"""The router's own answers: not found, or a redirect to add a slash, which a client follows with the same key."""

# What the default policy keeps, whoever gave the answer.
_ALWAYS_KEPT = frozenset(filter(unless_transient, range(200, 600))) - _BEFORE_THE_HANDLER - NOT_ROUTED


def settle(
    status: int, *, policy: Policy, routed: bool = True, handled: bool = True, accepted: bool = True
) -> Literal["keep", "release"]:
    """
    Whether an answer with *status* is recorded or frees its key.

    Args:
        routed: False if the scope shows that the framework found no route: then a 404 or a 307 is not an outcome.
        handled: False if no handler began: then no answer is an outcome, under any policy.
        accepted: False if the framework refused the input when the handler asked for it, usually before any effect.
    """
    keep = policy.keep
    if keep is unless_transient and status in _ALWAYS_KEPT and handled and accepted:
        return "keep"
    if not handled or not keep(status):
        return "release"
    if keep is unless_transient and (
        not accepted or status in _BEFORE_THE_HANDLER or (status in NOT_ROUTED and not routed)
    ):
        return "release"
    return "keep"


def recorded(answer: Event) -> Recorded | None:
    """The ending if *answer* alone decides it, as the first answer nearly always does; None: go on with `record`."""
    return RECORDED if answer is True else None


def record(claim: Claim, fingerprint: Fingerprint, *, random: Random) -> Generator[Action, Event, Ending]:
    """Records the outcome of a run before the first byte of the answer is sent (E1, E8)."""
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
            return Refuse(found)  # another run may have answered already: this answer could contradict it
        case _:
            return Forgotten()


def release() -> Generator[Action, Event, None]:
    """Frees the key of a run whose answer is not kept; if the store does not answer, in the background."""
    answer = yield RELEASE
    if isinstance(answer, Exception):
        yield RELEASE_LATER


def release_late(claim: Claim) -> Generator[Action, Event, Exception | None]:
    """
    Releases *claim*, with retries; if all fail, the key stays taken until the lease ends.

    Returns:
        The exception of the last try, or None.
    """
    for delay in (*delays.RELEASE_RETRIES, None):
        answer = yield RELEASE
        # An unconfirmed claim may still be granted later, by an acquire that was given up on: release again.
        if answer is True or (answer is False and confirmed(claim)):
            return None
        if delay is not None:
            yield Sleep(delay)
    return answer if isinstance(answer, Exception) else None


def confirmed(claim: Claim) -> bool:
    """Whether the claim is known to be granted: then a store that does not know it has nothing to release."""
    return claim.attempt > 0
