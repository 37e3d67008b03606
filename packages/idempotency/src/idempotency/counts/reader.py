"""Adds up the counts that all processes wrote into a store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from idempotency._core.errors import CorruptRecord, UnknownRecordVersion
from idempotency.counts.minutes import MINUTES, SERIES, Series
from idempotency.counts.record import count_key, read_counts
from idempotency.store import Store

__all__ = ["CountsReader", "SharedCounts"]


class SharedCounts(NamedTuple):
    """
    The counts that were read.

    Attributes:
        per_minute: For each of the last 60 minutes that are over, the oldest first.
        whole: Whether all of it was read.
        records: How many records it is from.
    """

    per_minute: dict[Series, list[int]]
    whole: bool
    records: int


class _Minute(NamedTuple):
    place: int  # of the first record that was not read
    counts: Counter[Series]


class CountsReader:
    """
    Adds up what every `StoreCounts` wrote into *store*.

    Args:
        clock: Seconds since 1970, for tests.

    It remembers what it read: such a record never changes, and new ones come behind the last.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._read: dict[int, _Minute] = {}

    async def read(self, *, limit: int = 2_000) -> SharedCounts:
        """
        Read what is new, the latest minute first.

        Args:
            limit: Records to ask for at most; the next call goes on from there.
        Raises:
            StoreUnavailable: No answer.

        Cost: one read for each minute, and one for each record that was not read before.
        """
        now = int(self._clock() // 60)
        shown = range(now - MINUTES, now)
        read = {minute: self._read.get(minute, _Minute(0, Counter())) for minute in shown}
        left = limit
        for minute in reversed(shown):
            if left > 0:
                read[minute], asked = await self._further(minute, read[minute], left)
                left -= asked
        self._read = read  # at the end, and whole: of two calls at once neither adds to what the other read
        return SharedCounts(
            {series: [read[minute].counts[series] for minute in shown] for series in SERIES},
            whole=left > 0,
            records=sum(part.place for part in read.values()),
        )

    async def _further(self, minute: int, known: _Minute, limit: int) -> tuple[_Minute, int]:
        place, counts = known.place, known.counts.copy()
        for asked in range(1, limit + 1):
            try:
                record = await self._store.get(count_key(minute, place))
            except (CorruptRecord, UnknownRecordVersion):
                place += 1
                continue
            if (
                record is None or record.lease_left > 0
            ):  # its counts follow; what is behind it waits a moment too
                return _Minute(place, counts), asked
            counts.update(read_counts(record.outcome))
            place += 1
        return _Minute(place, counts), limit
