"""Counts the events of keyed requests, minute by minute, in one process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from idempotency.events import Claimed, ClaimLost, Event, Refused, Replayed

__all__ = ["MINUTES", "SERIES", "Counts", "Series"]

Series: TypeAlias = Literal["hits", "misses", "conflicts", "takeovers", "lost claims"]

SERIES: Final[tuple[Series, ...]] = ("hits", "misses", "conflicts", "takeovers", "lost claims")
"""The counted events: replays, first runs, refusals because of another request, takeovers, and lost claims."""

MINUTES: Final = 60  # kept and shown

_CONFLICTS: Final = frozenset({"in-progress", "key-reused", "outcome-unknown", "not-replayable"})


class Counts:
    """
    A hook that counts events for the dashboard: replays (hits), first runs (misses), refusals because of another
    request (conflicts), runs that took over an abandoned one (takeovers), and lost claims.

    Args:
        minutes: How many minutes are kept.
        clock: Seconds from any origin, for tests; monotonic by default.

    Threads and middlewares may share it. It counts in one process: for several workers use `StoreCounts`. Cost: an
    addition under a lock for each event.

    >>> from idempotency.events import Replayed
    >>> counts = Counts()
    >>> counts(Replayed(operation="POST /charges", key_id="0bafe22156d2", age=1.0, waited=0.0))
    >>> sum(counts.per_minute("hits"))
    1
    """

    def __init__(self, *, minutes: int = MINUTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._minutes = minutes
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[int, Counter[Series]] = {}

    def __call__(self, event: Event) -> None:
        """Count *event*."""
        found = series_of(event)
        if found is None:
            return
        minute = int(self._clock() // 60)
        with self._lock:
            if minute not in self._counts:
                oldest = minute - self._minutes
                self._counts = {at: counts for at, counts in self._counts.items() if at > oldest}
                self._counts[minute] = Counter()
            self._counts[minute][found] += 1

    def per_minute(self, series: Series) -> list[int]:
        """The count of each minute, the oldest first; the last one is the current, unfinished minute."""
        now = int(self._clock() // 60)
        with self._lock:
            return [
                self._counts[at][series] if at in self._counts else 0
                for at in range(now - self._minutes + 1, now + 1)
            ]


def series_of(event: Event) -> Series | None:
    """The series that *event* belongs to."""
    match event:
        case Replayed():
            return "hits"
        case Claimed(attempt=attempt):
            return "misses" if attempt == 1 else "takeovers"
        case Refused(problem=problem) if problem in _CONFLICTS:
            return "conflicts"
        case ClaimLost():
            return "lost claims"
    return None
