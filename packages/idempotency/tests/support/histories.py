"""
Whether what callers saw of one record can be put in an order that the specification allows (linearizability).

The search is that of Wing and Gong with Lowe's memory of what was seen before: a call takes effect at one instant
between its start and its return, and one without an answer at any instant after its start, or never.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from idempotency._core.types import Acquired, Claim, Reply
from idempotency.testing._spec import Acquire, Call, Complete, Held, Release, Renew, Span, SpecState, step

__all__ = ["Seen", "explains", "fences_rise"]

_UNKNOWN = -1  # the fence of a claim that nobody was told of
_MOST = 500_000  # states; a history that needs more is made of too many calls at once


class _Place(NamedTuple):
    """A node of the search: the calls done, as bits, the record that they lead to, and the time reached."""

    done: int
    state: SpecState
    reached: float  # no call to come takes effect before this
    written: float  # nor did the last write


@dataclass(frozen=True, slots=True)
class Seen:
    """One call as its caller saw it: *reply* is None where there was no answer; seconds by the caller's clock."""

    call: Call
    reply: Reply | bool | None
    began: float
    ended: float


def explains(history: Sequence[Seen], *, resolution: float, apart: bool = False) -> bool:
    """
    Whether some order of the calls explains every answer.

    Args:
        resolution: Seconds to which the store's clock can be compared with the callers'.
        apart: Whether a call may read the clock at another instant than it takes effect: what it writes is judged
            before that, under a lock that the writes of a key hold one after another until they take effect; what it
            only reads is judged afterwards. Both instants lie within the call.
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
            if apart:
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
        assert len(seen_before) < _MOST, "too many calls at once to judge"
    return False


def fences_rise(history: Sequence[Seen]) -> bool:
    """Whether a claim that was granted after another was told of has the higher fence (R9)."""
    grants = [(seen, seen.reply.claim) for seen in history if isinstance(seen.reply, Acquired)]
    return all(
        earlier.fence < later.fence
        for told, earlier in grants
        for asked, later in grants
        if earlier.owner != later.owner and told.ended < asked.began
    )


def _may_extend(seen: Seen) -> bool:
    """Whether the call gives a lease that reaches further, the later it takes effect."""
    return isinstance(seen.reply, Acquired) or (isinstance(seen.call, Renew) and seen.reply is True)


def _outcomes(state: SpecState, seen: Seen, now: Span) -> Iterator[SpecState]:
    call, reply = seen.call, seen.reply
    if reply is not None:
        if isinstance(reply, Acquired) and _is_nameless(state) and state.owner == reply.claim.owner:
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


def _is_nameless(state: SpecState) -> bool:
    return isinstance(state, Held) and state.fence == _UNKNOWN
