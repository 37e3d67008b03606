"""Records of the memory store in buckets by expiry, so that expired ones are found without a search."""

from __future__ import annotations

import heapq
import math

from idempotency._core.types import Fingerprint, Owner, StorageKey

__all__ = ["SLOT_SECONDS", "Entry", "ExpiryWheel"]

SLOT_SECONDS = 16.0
"""Seconds of expiry that share a bucket: 24 h of retention makes 5 400 buckets."""


class _Node:
    """A node of a doubly linked ring: a bucket is the ring's head, its entries are the others."""

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
        until: float,
        retention: float,
    ) -> None:
        self.key: StorageKey = key
        self.fingerprint: Fingerprint = fingerprint
        self.owner: Owner = owner
        self.attempt: int = 1
        self.fence: int = fence
        self.until: float = until
        self.retention: float = retention
        self.expires_at: float = until + retention
        self.outcome: bytes | None = None
        self.since: float  # of its claim while it runs, then of its completion
        self.aside: bool = False  # passed over by a search for space: in the other wheel
        self.slot: int


class ExpiryWheel:
    """
    Entries by the slot of time in which they expire, first in first out; each operation takes constant amortised time.

    A heap of entries would cost O(log n) and could not forget one; here only the few slots are in a heap, and an entry
    knows its neighbours. Its expiry may move while it is scheduled: whoever takes it looks.

    Attributes:
        due: When the soonest slot is over, by the store's clock: until then there is nothing to sweep.
    """

    __slots__ = ("_buckets", "_slots", "due")

    def __init__(self) -> None:
        self._buckets: dict[int, _Node] = {}
        self._slots: list[int] = []
        self.due: float = math.inf

    def put(self, entry: Entry) -> None:
        """Add *entry* to the bucket of its expiry, behind those that are there."""
        entry.slot = slot = int(entry.expires_at / SLOT_SECONDS)
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = _Node()
            heapq.heappush(self._slots, slot)
            self._set_due()
        entry.before = last = bucket.before
        entry.after = bucket
        last.after = bucket.before = entry

    def take_soonest(self, now: float = math.inf) -> Entry | None:
        """Take the first entry of the soonest slot that has one, if that slot is over at *now*."""
        while now >= self.due and self._slots:
            first = self._buckets[self._slots[0]].after
            if isinstance(first, Entry):
                first.unlink()  # not the newest, which is the likeliest to be asked for again
                return first
            # Emptied buckets go only here: dropped and made anew, a slot would fill the heap.
            del self._buckets[heapq.heappop(self._slots)]
            self._set_due()
        return None

    def take_expired(self, now: float) -> Entry | None:
        """Take an entry of the soonest slot that has expired, though the slot is not over: a look at each of them."""
        node = self._buckets[self._slots[0]].after if self._slots else None
        while isinstance(node, Entry):
            if now >= node.expires_at:
                node.unlink()
                return node
            node = node.after
        return None

    def _set_due(self) -> None:
        self.due = (self._slots[0] + 1) * SLOT_SECONDS if self._slots else math.inf
