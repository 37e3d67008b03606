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
    The counts of all processes.

    Attributes:
        per_minute: For each series the counts of the last 60 finished minutes, the oldest first.
        whole: Whether all records were read.
        records: The number of records that were read.
    """

    per_minute: dict[Series, list[int]]
    whole: bool
    records: int


class _Minute(NamedTuple):
    place: int  # the place of the first unread record
    counts: Counter[Series]


class CountsReader:
    """
    Adds up what every `StoreCounts` wrote into *store*.

    Args:
        clock: Seconds since 1970, for tests.

    It remembers what it read, because such a record never changes and new records follow the last one.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._read: dict[int, _Minute] = {}

    async def read(self, *, limit: int = 2_000) -> SharedCounts:
        """
        Read the new records, the latest minute first.

        Args:
            limit: The most reads of the store; the next call continues from there.
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
        self._read = read  # replaced as a whole, so that two concurrent calls do not count a record twice
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
            # A leased record gets its counts soon; it and all later ones are read next time.
            if record is None or record.lease_left > 0:
                return _Minute(place, counts), asked
            counts.update(read_counts(record.outcome))
            place += 1
        return _Minute(place, counts), limit
