"""Keeps the records of the memory store in buckets by expiry, so that expired ones are found without a search."""

from __future__ import annotations

import heapq
import math

from idempotency._core.types import Fingerprint, Owner, StorageKey

__all__ = ["SLOT_SECONDS", "Entry", "ExpiryWheel"]

SLOT_SECONDS = 16.0
"""The seconds that one bucket covers: a retention of 24 h makes 5,400 buckets."""


class _Node:
    """A node of a doubly linked ring: the head is the bucket, the other nodes are its entries."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: _Node = self
        self.after: _Node = self

    def unlink(self) -> None:
        """Leave the ring."""
        self.before.after, self.after.before = self.after, self.before


class Entry(_Node):
    """One record; *outcome* is None while it runs, and *until* is then the end of its lease."""

    __slots__ = (
        "aside",
        "attempt",
        "expires_at",
        "fence",
        "fingerprint",
        "key",
        "outcome",
        "owner",
        "retention",
        "since",
        "slot",
        "until",
    )

    def __init__(
        self,
        key: StorageKey,
        fingerprint: Fingerprint,
        owner: Owner,
        fence: int,
        now: float,
        lease: float,
        retention: float,
    ) -> None:
        self.key: StorageKey = key
        self.fingerprint: Fingerprint = fingerprint
        self.owner: Owner = owner
        self.attempt: int = 1
        self.fence: int = fence
        self.since: float = now  # the time of its claim while it runs, later of its completion
        self.until: float = now + lease
        self.retention: float = retention
        self.expires_at: float = self.until + retention
        self.outcome: bytes | None = None
        self.aside: bool = False  # in the second wheel, because a search for space found it running
        self.slot: float


class ExpiryWheel:
    """
    Entries by the time slot in which they expire, first in first out; each operation takes constant amortised time.

    A heap of entries would cost O(log n) and could not remove an entry. Here only the few slots are in a heap, and an
    entry knows its neighbours. The expiry of a scheduled entry may change, so check it after taking the entry.

    Attributes:
        due: When the earliest slot ends, by the store's clock; before that there is nothing to sweep.
    """

    __slots__ = ("_buckets", "_slots", "due")

    def __init__(self) -> None:
        self._buckets: dict[float, _Node] = {}
        self._slots: list[float] = []
        self.due: float = math.inf

    def put(self, entry: Entry) -> None:
        """Add *entry* at the end of the bucket of its expiry."""
        entry.slot = slot = entry.expires_at // SLOT_SECONDS
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = _Node()
            heapq.heappush(self._slots, slot)
            self._set_due()
        entry.before = last = bucket.before
        entry.after = bucket
        last.after = bucket.before = entry

    def take_soonest(self, now: float = math.inf) -> Entry | None:
        """Take the first entry of the earliest slot that has one, if that slot is over at *now*."""
        while now >= self.due and self._slots:
            first = self._buckets[self._slots[0]].after
            if isinstance(first, Entry):
                first.unlink()  # the oldest entry: the newest is most likely to be requested again
                return first
            # Empty buckets are removed only here; otherwise one slot could be in the heap many times.
            del self._buckets[heapq.heappop(self._slots)]
            self._set_due()
        return None

    def take_expired(self, now: float) -> Entry | None:
        """Take an expired entry of the earliest slot, even if the slot is not over; checks each entry."""
        node = self._buckets[self._slots[0]].after if self._slots else None
        while isinstance(node, Entry):
            if now >= node.expires_at:
                node.unlink()
                return node
            node = node.after
        return None

    def _set_due(self) -> None:
        self.due = (self._slots[0] + 1) * SLOT_SECONDS if self._slots else math.inf
