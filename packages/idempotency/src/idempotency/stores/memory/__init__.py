"""
Records in the memory of one process: for tests, for a single worker, and for a first try.

Records end with the process, and each of several workers protects only the requests that it gets itself. The cost of a
call does not depend on the number of records: expiry is checked when a record is read (R7), and each claim deletes a
few expired records.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable

from idempotency._core.errors import StoreUnavailable
from idempotency._core.types import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Reply,
    Running,
    State,
    StorageKey,
)
from idempotency._runtime.fork import forget_in_child
from idempotency.store import Page
from idempotency.stores.memory.expiry_wheel import SLOT_SECONDS, Entry, ExpiryWheel

__all__ = ["MemoryStore", "SyncMemoryStore"]

_SWEEP = 4  # expired records removed by one acquire: more than it can add, so that memory shrinks under load
# Slots that a completed record may stay after its expiry; this saves a second scheduling of each run.
_LATE_SLOTS = 4

_new = tuple.__new__  # builds a named tuple in half the time of its constructor, a Python function


class SyncMemoryStore:
    """
    A bounded, thread-safe store for one process.

    Args:
        max_records: If a new key would exceed this number, a completed record near its expiry is evicted. Running
            records are never evicted: if all are running, `acquire` raises `StoreUnavailable`.
        clock: Seconds from any origin, never going back; `time.monotonic` does not depend on the wall clock.

    Each method is atomic: it holds one lock. Cost: a few dictionary operations, whatever the number of records.
    """

    def __init__(self, *, max_records: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        if max_records < 1:
            raise ValueError(f"max_records must be at least 1, not {max_records}")
        self.max_records = max_records
        self._clock = clock
        self._renew_lock()
        forget_in_child(self, SyncMemoryStore._renew_lock)
        self._entries: dict[StorageKey, Entry] = {}
        # A record is scheduled once, when it is claimed. Records that are found running in a search for space move
        # into the second wheel, so that later searches skip them.
        self._wheel = ExpiryWheel()
        self._aside = ExpiryWheel()
        # Wall time in nanoseconds grows faster than any count of claims, so a new process starts higher (R9).
        self._fence = time.time_ns()

    def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool = True,
    ) -> Reply:
        """See `Store.acquire`. Raises `StoreUnavailable` if *max_records* records are running."""
        with self._lock:
            now, entries = self._clock(), self._entries
            entry = entries.get(key)
            if entry is None or now >= entry.expires_at:
                if entry is not None:
                    self._remove(entry)
                if now >= self._wheel.due or now >= self._aside.due or len(entries) >= self.max_records:
                    self._make_room(now)
                self._fence = fence = self._fence + 1
                entries[key] = entry = Entry(key, fingerprint, owner, fence, now, lease, retention)
                self._wheel.put(entry)
                return _new(Acquired, (_new(Claim, (key, owner, 1, fence)),))
            if entry.outcome is not None:
                age, expires_in = now - entry.since, entry.expires_at - now
                return _new(Completed, (entry.fingerprint, entry.outcome, age, expires_in))
            if entry.owner == owner:  # the first reply was lost (R2); the lease is extended from now
                _push(entry, now + lease)
                return Acquired(Claim(key, owner, entry.attempt, entry.fence))
            if now < entry.until:
                return Running(entry.fingerprint, entry.until - now)
            if not takeover or entry.fingerprint != fingerprint:
                return Running(entry.fingerprint, 0.0)
            self._fence = entry.fence = self._fence + 1
            entry.owner = owner
            entry.attempt += 1
            entry.since = now
            entry.retention = retention
            entry.until = now + lease
            entry.expires_at = entry.until + retention
            self._reschedule(entry)
            return Acquired(Claim(key, owner, entry.attempt, entry.fence))

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        with self._lock:
            now = self._clock()
            entry = self._owned(claim, now)
            if entry is None or entry.outcome is not None:
                return False
            _push(entry, now + lease)
            return True

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`."""
        with self._lock:
            now = self._clock()
            entry = self._owned(claim, now)
            if entry is None:
                return False
            if entry.outcome is None:
                entry.outcome = outcome
                entry.since = now
                entry.expires_at = now + retention
                late = entry.slot - entry.expires_at / SLOT_SECONDS
                if late > _LATE_SLOTS or entry.aside:
                    self._reschedule(entry)
            return True

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        with self._lock:
            entry = self._owned(claim, self._clock())
            if entry is None or entry.outcome is not None:
                return False
            self._remove(entry)
            return True

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        with self._lock:
            now = self._clock()
            entry = self._entries.get(key)
            return _record(entry, now) if entry is not None and now < entry.expires_at else None

    def create_schema(self) -> None:
        """Do nothing: there is no table."""

    def close(self) -> None:
        """Do nothing: the records live as long as the store object."""

    def purge(self, *, limit: int = 1_000) -> int:
        """
        See `Purgeable.purge`.

        Never needed, because `acquire` deletes expired records. Records that expired in the last minute may stay.
        """
        with self._lock:
            return self._sweep(self._clock(), limit)

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`. Pages are in key order; each costs one pass over the keys."""
        with self._lock:
            keys = list(self._entries)
        page = heapq.nsmallest(limit, keys if cursor is None else (key for key in keys if key > cursor))
        records = tuple(record for key in page if (record := self.get(key)) is not None)
        return Page(records, page[-1] if len(page) == limit else None)

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return False
            self._remove(entry)
            return self._clock() < entry.expires_at

    def _owned(self, claim: Claim, now: float) -> Entry | None:
        entry = self._entries.get(claim.key)
        if entry is None or entry.owner != claim.owner or now >= entry.expires_at:
            return None
        return entry

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.key]
        entry.unlink()

    def _reschedule(self, entry: Entry) -> None:
        entry.unlink()
        entry.aside = False
        self._wheel.put(entry)

    def _make_room(self, now: float) -> None:
        self._sweep(now, _SWEEP)
        if len(self._entries) < self.max_records:
            return
        evicted = self._take_evictable(now)
        if evicted is None:
            raise StoreUnavailable(
                f"all {self.max_records} records of the memory store are running, so none can be evicted; raise "
                "max_records or admit fewer requests at once"
            )
        del self._entries[evicted.key]

    def _take_evictable(self, now: float) -> Entry | None:
        """Take a completed record near its expiry, or an expired one; running records move to the second wheel."""
        while (entry := self._wheel.take_soonest()) is not None:
            if entry.outcome is not None or now >= entry.expires_at:
                return entry
            entry.aside = True
            self._aside.put(entry)
        return self._aside.take_expired(now)

    def _renew_lock(self) -> None:
        """Called in a forked child, where no thread would release the lock. The child keeps a copy of the records."""
        self._lock = threading.Lock()

    def _sweep(self, now: float, limit: int) -> int:
        removed = 0
        for wheel in (self._wheel, self._aside):
            while removed < limit and (entry := wheel.take_soonest(now)) is not None:
                if now < entry.expires_at:  # renewed since it was scheduled
                    wheel.put(entry)
                else:
                    del self._entries[entry.key]
                    removed += 1
        return removed


class MemoryStore:
    """
    `SyncMemoryStore` for an event loop: the same store; no method waits.

    Args:
        max_records: See `SyncMemoryStore`.
        clock: See `SyncMemoryStore`.
    """

    def __init__(self, *, max_records: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = SyncMemoryStore(max_records=max_records, clock=clock)
        self.max_records = max_records

    async def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool = True,
    ) -> Reply:
        """See `SyncMemoryStore.acquire`."""
        return self._store.acquire(
            key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
        )

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return self._store.renew(claim, lease=lease)

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`."""
        return self._store.complete(claim, outcome, retention=retention)

    async def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return self._store.release(claim)

    async def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return self._store.get(key)

    async def create_schema(self) -> None:
        """Do nothing: there is no table."""

    async def aclose(self) -> None:
        """Do nothing: the records live as long as the store object."""

    async def purge(self, *, limit: int = 1_000) -> int:
        """See `SyncMemoryStore.purge`."""
        return self._store.purge(limit=limit)

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SyncMemoryStore.scan`."""
        return self._store.scan(limit=limit, cursor=cursor)

    async def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        return self._store.forget(key)


def _push(entry: Entry, until: float) -> None:
    """Extend the lease and with it the life of the record; never shorten them (R4, R7)."""
    if until > entry.until:
        entry.until = until
        # The entry stays in its bucket and moves when that is due, so that a renewal is cheap.
        entry.expires_at = until + entry.retention


def _record(entry: Entry, now: float) -> Record:
    running = entry.outcome is None
    return Record(
        key=entry.key,
        state=State.RUNNING if running else State.COMPLETED,
        fingerprint=entry.fingerprint,
        owner=entry.owner,
        attempt=entry.attempt,
        fence=entry.fence,
        outcome=entry.outcome,
        lease_left=entry.until - now if running else 0.0,
        age=now - entry.since,
        expires_in=entry.expires_at - now,
    )
