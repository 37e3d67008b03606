"""
Checks the recorded calls on one key for linearizability against the specification of a store.

The search is that of Wing and Gong, with Lowe's memory of visited states: a call takes effect at one instant between
its start and its return, and a call without a reply at any instant after its start, or never.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from idempotency._core.types import Acquired, Claim, Reply
from idempotency.testing._spec import Acquire, Call, Complete, Held, Release, Renew, Span, SpecState, step

__all__ = ["ObservedCall", "is_linearizable", "fences_increase"]

_UNKNOWN = -1  # the fence of a claim whose reply was lost
_MOST = 500_000  # states; a history that needs more has too many concurrent calls


class _Place(NamedTuple):
    """A node of the search: the calls done, as bits, the record that they lead to, and the time reached."""

    done: int
    state: SpecState
    reached: float  # no call to come takes effect before this
    written: float  # nor did the last write


@dataclass(frozen=True, slots=True)
class ObservedCall:
    """One call as its caller observed it: *reply* is None if none arrived; seconds by the caller's clock."""

    call: Call
    reply: Reply | bool | None
    began: float
    ended: float


def is_linearizable(
    history: Sequence[ObservedCall], *, resolution: float, separate_clock_read: bool = False
) -> bool:
    """
    Whether some order of the calls gives every reply that was observed.

    Args:
        resolution: Seconds to which the store's clock can be compared with the callers'.
        separate_clock_read: Whether a call may read the clock at another instant than it takes effect. The clock of a
            write is read before, under a lock that the writes of a key hold one after another until they take effect;
            that of a read is read afterwards. Both instants lie within the call.
    """
    calls = sorted(history, key=lambda seen: seen.began)
    everything = (1 << len(calls)) - 1
    unanswered = sum(1 << at for at, seen in enumerate(calls) if seen.reply is None)
    start = _Place(0, None, -math.inf, -math.inf)
    seen_before, stack = {start}, [start]
    while stack:
        place = stack.pop()
        if place.done | unanswered == everything:
            return True
        waiting = [(at, seen) for at, seen in enumerate(calls) if not place.done >> at & 1]
        horizon = min(seen.ended for _, seen in waiting if seen.reply is not None)
        nexts: list[tuple[bool, _Place]] = []
        for at, seen in waiting:
            if seen.began > horizon:
                break
            instant = max(place.reached, seen.began)
            writing = Span(instant - resolution, horizon + resolution)
            reading = writing
            if separate_clock_read:
                writing = Span(max(place.written, seen.began) - resolution, horizon + resolution)
                reading = Span(instant - resolution, seen.ended + resolution)
            done, answered = place.done | 1 << at, seen.reply is not None
            if answered and place.state in _outcomes(place.state, seen, reading):
                nexts.append((True, place._replace(done=done, reached=instant)))
                # It changes nothing, neither record nor time, and would not later either: later is no better.
                if seen.began <= place.reached and not _may_extend(seen):
                    nexts = nexts[-1:]
                    break
            for after in _outcomes(place.state, seen, writing):
                if after != place.state:
                    nexts.append((answered, _Place(done, after, instant, instant)))
        nexts.sort(key=lambda item: item[0])  # what was answered is tried first
        for _, after_it in nexts:
            if after_it not in seen_before:
                seen_before.add(after_it)
                stack.append(after_it)
        assert len(seen_before) < _MOST, "too many concurrent calls to judge"
    return False


def fences_increase(history: Sequence[ObservedCall]) -> bool:
    """Whether a claim that was requested after another had been granted has the higher fence (R9)."""
    grants = [(seen, seen.reply.claim) for seen in history if isinstance(seen.reply, Acquired)]
    return all(
        earlier.fence < later.fence
        for first, earlier in grants
        for second, later in grants
        if earlier.owner != later.owner and first.ended < second.began
    )


def _may_extend(seen: ObservedCall) -> bool:
    """Whether the call grants a lease that ends later, the later the call takes effect."""
    return isinstance(seen.reply, Acquired) or (isinstance(seen.call, Renew) and seen.reply is True)


def _outcomes(state: SpecState, seen: ObservedCall, now: Span) -> Iterator[SpecState]:
    call, reply = seen.call, seen.reply
    if reply is not None:
        if isinstance(reply, Acquired) and _has_unknown_fence(state) and state.owner == reply.claim.owner:
            state = replace(state, fence=reply.claim.fence)  # now we know
        yield from step(state, call, reply, now)
    elif isinstance(call, Acquire):
        before = state if isinstance(state, Held) else None
        for attempt in {1} if before is None else {1, before.attempt, before.attempt + 1}:
            ours = before is not None and before.owner == call.owner
            fence = before.fence if ours and before is not None else _UNKNOWN
            granted = Acquired(Claim(call.key, call.owner, attempt, fence))
            yield from step(state, call, granted, now)
    elif isinstance(call, Renew | Complete | Release):
        yield from step(state, call, True, now)


def _has_unknown_fence(state: SpecState) -> bool:
    return isinstance(state, Held) and state.fence == _UNKNOWN
