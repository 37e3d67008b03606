"""Where the memory store keeps records: on shelves, by when they expire, so that space is found without a search."""

from __future__ import annotations

import heapq
import math

from idempotency._core.types import Fingerprint, Owner, StorageKey

__all__ = ["SLOT_SECONDS", "Entry", "Shelves"]

SLOT_SECONDS = 16.0
"""How coarsely records are shelved by expiry: 24 h of retention makes 5 400 shelves."""


class _Link:
    """A place in a ring: of a shelf's entries, the shelf itself among them as its beginning and end."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: _Link = self
        self.after: _Link = self

    def unlink(self) -> None:
        """Leave the ring."""
        self.before.after, self.after.before = self.after, self.before


class Entry(_Link):
    """One record; *outcome* is None while it runs, and *until* is then the end of its lease."""

    __slots__ = (
        "aside",
        "attempt",
        "completed_at",
        "expires_at",
        "fence",
        "fingerprint",
        "key",
        "outcome",
        "owner",
        "retention",
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
        self.key = key
        self.fingerprint = fingerprint
        self.owner = owner
        self.attempt = 1
        self.fence = fence
        self.until = until
        self.retention = retention
        self.expires_at = until + retention
        self.outcome: bytes | None = None
        self.completed_at: float
        self.aside = False  # passed over by a search for space: on the other shelves
        self.slot: int


class Shelves:
    """
    Entries by the slot of time in which they expire, first in first out; each operation takes constant amortised time.

    A heap of entries would cost O(log n) and could not forget one; here only the few slots are in a heap, and an entry
    knows its neighbours. Its expiry may move while it is shelved: whoever takes it looks.

    Attributes:
        due: When the soonest slot is over, by the store's clock: until then there is nothing to sweep.
    """

    __slots__ = ("_shelves", "_slots", "due")

    def __init__(self) -> None:
        self._shelves: dict[int, _Link] = {}
        self._slots: list[int] = []
        self.due = math.inf

    def put(self, entry: Entry) -> None:
        """Shelve *entry* by its expiry, behind those that are there."""
        entry.slot = slot = int(entry.expires_at / SLOT_SECONDS)
        shelf = self._shelves.get(slot)
        if shelf is None:
            shelf = self._shelves[slot] = _Link()
            heapq.heappush(self._slots, slot)
            self._set_due()
        entry.before = last = shelf.before
        entry.after = shelf
        last.after = shelf.before = entry

    def take_soonest(self, now: float = math.inf) -> Entry | None:
        """Take the first entry of the soonest slot that has one, if that slot is over at *now*."""
        while now >= self.due and self._slots:
            first = self._shelves[self._slots[0]].after
            if isinstance(first, Entry):
                first.unlink()  # not the newest, which is the likeliest to be asked for again
                return first
            # Emptied shelves go only here: dropped and made anew, a slot would fill the heap.
            del self._shelves[heapq.heappop(self._slots)]
            self._set_due()
        return None

    def take_expired(self, now: float) -> Entry | None:
        """Take an entry of the soonest slot that has expired, though the slot is not over: a look at each of them."""
        link = self._shelves[self._slots[0]].after if self._slots else None
        while isinstance(link, Entry):
            if now >= link.expires_at:
                link.unlink()
                return link
            link = link.after
        return None

    def _set_due(self) -> None:
        self.due = (self._slots[0] + 1) * SLOT_SECONDS if self._slots else math.inf
