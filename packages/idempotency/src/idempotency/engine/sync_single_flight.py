"""
Single flight among threads: of many concurrent duplicates in one process, one leads and the others wait.

`single_flight` does the same for the tasks of an event loop: followers do not call the store, the leader's outcome is
given to all of them, and if the leader ends without an outcome, exactly one follower becomes the leader.
"""

from __future__ import annotations

import threading

from idempotency._core.types import Completed, Fingerprint, StorageKey
from idempotency._runtime.fork import forget_in_child

__all__ = ["SyncInFlight", "SyncSingleFlight"]


class SyncInFlight:
    """The concurrent duplicates of one key. Its fields change only under the lock of `SyncSingleFlight`."""

    __slots__ = ("changed", "completed", "fingerprint", "followers", "vacant")

    def __init__(self, fingerprint: Fingerprint, lock: threading.Lock) -> None:
        self.fingerprint: Fingerprint = fingerprint
        self.changed: threading.Condition = threading.Condition(lock)
        self.followers: int = 0
        self.vacant: bool = False  # the leader has ended, and no follower has become the leader yet
        self.completed: Completed | None = None


class SyncSingleFlight:
    """The keys of one engine that have a leader. Thread-safe; a forked child starts with none."""

    def __init__(self) -> None:
        self._start_anew()
        forget_in_child(self, SyncSingleFlight._start_anew)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[StorageKey, SyncInFlight] = {}

    def find(self, key: StorageKey, fingerprint: Fingerprint) -> SyncInFlight | None:
        """The duplicates that a request may join (same fingerprint), or None."""
        in_flight = self._by_key.get(key)
        return in_flight if in_flight is not None and in_flight.fingerprint == fingerprint else None

    def lead(self, key: StorageKey, fingerprint: Fingerprint) -> SyncInFlight | None:
        """Make the caller the leader of *key*; None if the key has a leader."""
        with self._lock:
            in_flight = SyncInFlight(fingerprint, self._lock)
            return in_flight if self._by_key.setdefault(key, in_flight) is in_flight else None

    def follow(self, in_flight: SyncInFlight, key: StorageKey, limit: float) -> tuple[Completed | None, bool]:
        """Wait up to *limit* seconds; returns the leader's outcome, if any, and whether the caller now leads."""
        with self._lock:
            in_flight.followers += 1
            promoted = False
            try:
                if self._by_key.get(key) is in_flight:  # otherwise it was resolved, or ended, since `find`
                    in_flight.changed.wait_for(
                        lambda: in_flight.vacant or in_flight.completed is not None,
                        min(limit, threading.TIMEOUT_MAX),  # `Policy.wait` may be infinite
                    )
                promoted, in_flight.vacant = in_flight.vacant, False
                return in_flight.completed, promoted
            finally:
                in_flight.followers -= 1
                if in_flight.vacant and not promoted:  # interrupted at the moment of promotion
                    self._promote_follower(key, in_flight)

    def resolve(self, key: StorageKey, in_flight: SyncInFlight, completed: Completed) -> None:
        """Give the outcome to every follower."""
        with self._lock:
            if self._by_key.get(key) is in_flight:  # False in a forked child that ends a run of its parent
                del self._by_key[key]
                in_flight.completed = completed
                in_flight.changed.notify_all()

    def hand_over(self, key: StorageKey, in_flight: SyncInFlight) -> None:
        """End the lead without an outcome: one follower becomes the leader."""
        with self._lock:
            self._promote_follower(key, in_flight)

    def __len__(self) -> int:
        return len(self._by_key)

    def _promote_follower(self, key: StorageKey, in_flight: SyncInFlight) -> None:
        if self._by_key.get(key) is not in_flight:
            return
        in_flight.vacant = in_flight.followers > 0
        if in_flight.vacant:
            in_flight.changed.notify()
        else:
            del self._by_key[key]
