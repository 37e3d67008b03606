"""
The executable specification of one record: the states that a call may lead to, given the store's answer.

Time is an interval. A call takes effect at an unknown time between its start and its return, and a store may read its
own clock with limited precision. So a comparison with a time may have both results, and `step` returns the *set* of
possible states. With a fake clock every interval is a point, and the set has one member.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from idempotency._core.types import (
    Acquired,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Reply,
    Running,
    State,
    StorageKey,
)

__all__ = [
    "Acquire",
    "Call",
    "Complete",
    "Done",
    "Get",
    "Held",
    "Release",
    "Renew",
    "SpecState",
    "Span",
    "step",
]


@dataclass(frozen=True, slots=True)
class Span:
    """A time, or a duration, between *lo* and *hi*; in seconds."""

    lo: float
    hi: float

    def __add__(self, seconds: float) -> Span:
        return Span(self.lo + seconds, self.hi + seconds)

    def __sub__(self, other: Span) -> Span:
        return Span(self.lo - other.hi, self.hi - other.lo)

    def __contains__(self, value: float) -> bool:
        return self.lo <= value <= self.hi

    def latest(self, other: Span) -> Span:
        return Span(max(self.lo, other.lo), max(self.hi, other.hi))

    def may_reach(self, instant: Span) -> bool:
        """Whether *instant* may be past, if this span is now."""
        return self.hi >= instant.lo

    def may_precede(self, instant: Span) -> bool:
        """Whether *instant* may be in the future, if this span is now."""
        return self.lo < instant.hi


@dataclass(frozen=True, slots=True)
class Held:
    """A running record: it lapses at *until* and is forgotten *retention* seconds later (R7)."""

    fingerprint: Fingerprint
    owner: Owner
    attempt: int
    fence: int
    until: Span
    retention: float

    @property
    def expires(self) -> Span:
        return self.until + self.retention


@dataclass(frozen=True, slots=True)
class Done:
    """A completed record: it is forgotten *retention* seconds after *since* (R7)."""

    fingerprint: Fingerprint
    owner: Owner
    attempt: int
    fence: int
    outcome: bytes
    since: Span
    retention: float

    @property
    def expires(self) -> Span:
        return self.since + self.retention


SpecState: TypeAlias = Held | Done | None
"""A possible state of one key; None: there is no record."""


@dataclass(frozen=True, slots=True)
class Acquire:
    key: StorageKey
    fingerprint: Fingerprint
    owner: Owner
    lease: float
    retention: float
    takeover: bool


@dataclass(frozen=True, slots=True)
class Renew:
    key: StorageKey
    owner: Owner
    lease: float


@dataclass(frozen=True, slots=True)
class Complete:
    key: StorageKey
    owner: Owner
    outcome: bytes
    retention: float


@dataclass(frozen=True, slots=True)
class Release:
    key: StorageKey
    owner: Owner


@dataclass(frozen=True, slots=True)
class Get:
    key: StorageKey


Call: TypeAlias = Acquire | Renew | Complete | Release | Get


def step(state: SpecState, call: Call, reply: Reply | Record | bool | None, now: Span) -> set[SpecState]:
    """
    The states the record may be in after *call* at *now* gave *reply*; empty if that reply breaks a rule.

    The fence is taken from the reply; that it rises (R9) is checked over a whole history, not in a step.
    """
    return {after for before in _as_found(state, now) for after in _after(before, call, reply, now)}


def _as_found(state: SpecState, now: Span) -> Iterator[SpecState]:
    """The states at the beginning of a call: the record may have expired (R7)."""
    if state is None or now.may_reach(state.expires):
        yield None
    if state is not None and now.may_precede(state.expires):
        yield state


def _after(
    state: SpecState, call: Call, reply: Reply | Record | bool | None, now: Span
) -> Iterator[SpecState]:
    match call:
        case Acquire():
            yield from _acquire(state, call, reply, now)
        case Renew(owner=owner, lease=lease):
            held = isinstance(state, Held) and state.owner == owner
            if reply is held:
                yield _extended(state, now + lease) if held and isinstance(state, Held) else state
        case Complete(owner=owner, outcome=outcome, retention=retention):
            if state is None or state.owner != owner:
                if reply is False:
                    yield state
            elif reply is True:
                yield _settled(state, outcome, now, retention) if isinstance(state, Held) else state
        case Release(owner=owner):
            held = isinstance(state, Held) and state.owner == owner
            if reply is held:
                yield None if held else state
        case Get():
            if _describes(reply, state, call.key, now):
                yield state


def _acquire(
    state: SpecState, call: Acquire, reply: Reply | Record | bool | None, now: Span
) -> Iterator[SpecState]:
    """Rules R1, R2 and R7; tries every branch that is possible for the clocks."""
    if state is None:
        yield from _granted(call, reply, 1, now)
    elif isinstance(state, Done):
        if (
            isinstance(reply, Completed)
            and (reply.fingerprint, reply.outcome) == (state.fingerprint, state.outcome)
            and reply.age in now - state.since
            and reply.expires_in in state.expires - now
        ):
            yield state
    elif state.owner == call.owner:
        if (
            isinstance(reply, Acquired)
            and reply.claim.fence == state.fence
            and _is_for(reply, call, state.attempt)
        ):
            yield _extended(state, now + call.lease)
    else:
        if (
            now.may_precede(state.until)
            and isinstance(reply, Running)
            and reply.fingerprint == state.fingerprint
            and reply.lease_left in state.until - now
        ):
            yield state
        if now.may_reach(state.until):
            if call.takeover and state.fingerprint == call.fingerprint:
                yield from _granted(call, reply, state.attempt + 1, now)
            elif reply == Running(state.fingerprint, 0.0):
                yield state


def _granted(
    call: Acquire, reply: Reply | Record | bool | None, attempt: int, now: Span
) -> Iterator[SpecState]:
    if isinstance(reply, Acquired) and _is_for(reply, call, attempt):
        fence = reply.claim.fence
        yield Held(call.fingerprint, call.owner, attempt, fence, now + call.lease, call.retention)


def _is_for(reply: Acquired, call: Acquire, attempt: int) -> bool:
    return (reply.claim.key, reply.claim.owner, reply.claim.attempt) == (call.key, call.owner, attempt)


def _extended(state: Held, until: Span) -> Held:
    return replace(state, until=state.until.latest(until))  # never shortened (R4)


def _settled(state: Held, outcome: bytes, now: Span, retention: float) -> Done:
    return Done(state.fingerprint, state.owner, state.attempt, state.fence, outcome, now, retention)


def _describes(reply: object, state: SpecState, key: StorageKey, now: Span) -> bool:
    if state is None:
        return reply is None
    if not isinstance(reply, Record):
        return False
    same = (reply.key, reply.fingerprint, reply.owner, reply.attempt, reply.fence) == (
        key,
        state.fingerprint,
        state.owner,
        state.attempt,
        state.fence,
    )
    if isinstance(state, Held):
        moves = reply.state is State.RUNNING and reply.outcome is None and reply.age >= 0.0
        moves = moves and reply.lease_left in state.until - now
    else:
        moves = reply.state is State.COMPLETED and reply.outcome == state.outcome and reply.lease_left == 0.0
        moves = moves and reply.age in now - state.since
    return same and moves and reply.expires_in in state.expires - now
