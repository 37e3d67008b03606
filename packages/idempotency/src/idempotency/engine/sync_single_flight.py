"""
Single flight among threads: of many twins in one process, one leads (it runs, or watches the store), the others wait.

The twin of `single_flight`. Followers ask the store nothing. What the leader learns is handed to all of them; where it
leaves without an answer, exactly one follower takes its place.
"""

from __future__ import annotations

import threading

from idempotency._core.types import Completed, Fingerprint, StorageKey
from idempotency._fork import forget_in_child

__all__ = ["SyncFlight", "SyncFlights"]


class SyncFlight:
    """The twins of one key; its fields change under the lock of all flights alone."""

    __slots__ = ("changed", "completed", "fingerprint", "followers", "vacant")

    def __init__(self, fingerprint: Fingerprint, lock: threading.Lock) -> None:
        self.fingerprint = fingerprint
        self.changed = threading.Condition(lock)
        self.followers = 0
        self.vacant = False  # the leader has left, and no follower has taken its place yet
        self.completed: Completed | None = None


class SyncFlights:
    """All flights of one engine. Thread-safe; in a child of `fork` there are none, as its twins stayed behind."""

    def __init__(self) -> None:
        self._start_anew()
        forget_in_child(self, SyncFlights._start_anew)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[StorageKey, SyncFlight] = {}

    def find(self, key: StorageKey, fingerprint: Fingerprint) -> SyncFlight | None:
        """The flight that a call may follow."""
        flight = self._by_key.get(key)
        return flight if flight is not None and flight.fingerprint == fingerprint else None

    def lead(self, key: StorageKey, fingerprint: Fingerprint) -> SyncFlight | None:
        """A new flight, or None where the key has a leader already."""
        with self._lock:
            flight = SyncFlight(fingerprint, self._lock)
            return flight if self._by_key.setdefault(key, flight) is flight else None

    def follow(self, flight: SyncFlight, key: StorageKey, limit: float) -> tuple[Completed | None, bool]:
        """What the leader learned within *limit* seconds, if anything, and whether the caller is to lead now."""
        with self._lock:
            flight.followers += 1
            promoted = False
            try:
                if self._by_key.get(key) is flight:  # else it has landed, or ended, since it was found
                    flight.changed.wait_for(lambda: flight.vacant or flight.completed is not None, limit)
                promoted, flight.vacant = flight.vacant, False
                return flight.completed, promoted
            finally:
                flight.followers -= 1
                if flight.vacant and not promoted:  # interrupted in the moment of promotion
                    self._hand_on(key, flight)

    def land(self, key: StorageKey, flight: SyncFlight, completed: Completed) -> None:
        """The outcome is known: everybody has it."""
        with self._lock:
            if self._by_key.get(key) is flight:  # not so in a child that ends what its parent began
                del self._by_key[key]
                flight.completed = completed
                flight.changed.notify_all()

    def leave(self, key: StorageKey, flight: SyncFlight) -> None:
        """The leader goes without an outcome: a follower leads."""
        with self._lock:
            self._hand_on(key, flight)

    def __len__(self) -> int:
        return len(self._by_key)

    def _hand_on(self, key: StorageKey, flight: SyncFlight) -> None:
        if self._by_key.get(key) is not flight:
            return
        flight.vacant = flight.followers > 0
        if flight.vacant:
            flight.changed.notify()
        else:
            del self._by_key[key]
