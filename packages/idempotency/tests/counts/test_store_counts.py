"""Counts in a store: written once a minute, never twice, by independent processes."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref
from typing import Any

import pytest
from patience import until_sync

from idempotency import Claim, Owner, StorageKey, StoreUnavailable
from idempotency._core.types import Reply
from idempotency.counts import StoreCounts
from idempotency.counts.reader import CountsReader, SharedCounts
from idempotency.counts.record import FINGERPRINT, count_key, encode_counts, read_counts
from idempotency.events import Claimed, Refused, Replayed
from idempotency.stores.memory import SyncMemoryStore
from idempotency.stores.threaded import ThreadedStore

REPLAYED = Replayed(operation="POST /charges", key_id="0bafe22156d2", age=1.0, waited=0.0)
CLAIMED = Claimed(operation="POST /charges", key_id="0bafe22156d2", attempt=1, waited=0.0)
BASE = 1_700_000_040.0  # the beginning of a minute


class Harness:
    """A store, its clock, workers that count, and the reader of the dashboard."""

    def __init__(self) -> None:
        self.now = BASE
        self.store = FlakyStore(clock=lambda: self.now)
        self.reader = CountsReader(ThreadedStore(self.store), clock=lambda: self.now)

    def worker(self) -> StoreCounts:
        return StoreCounts(self.store, clock=lambda: self.now)

    def read(self, limit: int = 2_000) -> SharedCounts:
        return asyncio.run(self.reader.read(limit=limit))

    def hits(self) -> int:
        return sum(self.read().per_minute["hits"])


class FlakyStore(SyncMemoryStore):
    """Loses the next replies after the call took effect, or is down."""

    lose_acquired = lose_completed = down = 0
    acquires = 0

    def acquire(self, key: StorageKey, **settings: Any) -> Reply:
        self.acquires += 1
        if self.down:
            raise StoreUnavailable("down")
        reply = super().acquire(key, **settings)
        if self.lose_acquired:
            self.lose_acquired -= 1
            raise StoreUnavailable("the answer was lost")
        return reply

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        done = super().complete(claim, outcome, retention=retention)
        if self.lose_completed:
            self.lose_completed -= 1
            raise StoreUnavailable("the answer was lost")
        return done


def test_counts_are_written_once_and_only_after_the_minute_is_over() -> None:
    harness = Harness()
    worker = harness.worker()
    worker(REPLAYED)
    worker(REPLAYED)
    worker.write()
    assert harness.store.scan().records == ()
    harness.now += 60.0
    worker.write()
    worker.write()
    assert len(harness.store.scan().records) == 1
    assert harness.read().per_minute["hits"][-1] == 2
    assert harness.hits() == 2, "reading again adds nothing"


def test_late_counts_are_added_to_those_already_read() -> None:
    harness = Harness()
    first, second = harness.worker(), harness.worker()
    first(REPLAYED)
    second(REPLAYED)
    harness.now += 60.0
    first.write()
    assert harness.hits() == 1
    harness.now += 600.0
    second.write()
    assert harness.hits() == 2
    assert harness.read().per_minute["hits"][-11] == 2, "counted in the minute of the event"


@pytest.mark.parametrize("lost", ["lose_acquired", "lose_completed"])
def test_lost_reply_neither_loses_nor_doubles_counts(lost: str, caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    worker = harness.worker()
    worker(REPLAYED)
    worker(CLAIMED)
    harness.now += 60.0
    setattr(harness.store, lost, 1)
    with caplog.at_level(logging.WARNING, "idempotency"):
        worker.write()
    assert "will be later" in caplog.text
    worker.write()
    counted = harness.read().per_minute
    assert (sum(counted["hits"]), sum(counted["misses"])) == (1, 1)


def test_counts_of_the_last_hour_are_written_after_an_outage() -> None:
    harness = Harness()
    worker = harness.worker()
    harness.store.down = 1
    for _ in range(200):
        worker(REPLAYED)
        harness.now += 60.0
        worker.write()
    harness.store.down = 0
    worker.write()
    assert harness.hits() == 59, "the minutes that are shown, without the current one"


def test_close_writes_the_current_minute_and_ends_counting() -> None:
    harness = Harness()
    worker = harness.worker()
    worker(REPLAYED)
    worker.close()
    worker.close()
    worker(REPLAYED)
    worker.write(whole_minutes=False)
    harness.now += 60.0
    assert harness.hits() == 1, "events after close() are not counted"


def test_record_under_lease_is_waited_for_and_abandoned_one_is_skipped() -> None:
    harness = Harness()
    settings = {"fingerprint": FINGERPRINT, "owner": Owner(b"d" * 16), "lease": 60.0, "retention": 600.0}
    harness.store.acquire(count_key(int(BASE // 60), 0), **settings)
    worker = harness.worker()
    worker(REPLAYED)
    harness.now += 59.0
    worker.close()
    harness.now += 0.9
    assert harness.hits() == 0
    harness.now += 1.0
    assert harness.hits() == 1


def test_records_of_another_form_are_skipped() -> None:
    harness = Harness()
    for place, outcome in enumerate(
        [b'{"format":1,"outcome":"value","value":[1]}', b"{}", encode_counts({"hits": 2})]
    ):
        settings = {"fingerprint": FINGERPRINT, "owner": Owner(b"x" * 16), "lease": 60.0, "retention": 6000.0}
        reply = harness.store.acquire(count_key(int(BASE // 60), place), **settings)
        harness.store.complete(reply.claim, outcome, retention=6000.0)
    harness.now += 60.0
    assert harness.hits() == 2
    assert (
        read_counts(b'{"format":1,"outcome":"value","value":{"hits":-1,"misses":"2","conflicts":true}}') == {}
    )


def test_read_is_bounded_and_continues_where_it_stopped() -> None:
    harness = Harness()
    for _ in range(30):
        worker = harness.worker()
        worker(REPLAYED)
        worker.close()
    harness.now += 60.0
    first = harness.read(limit=10)
    assert (first.whole, sum(first.per_minute["hits"])) == (False, 10)
    assert sum(harness.read(limit=10).per_minute["hits"]) == 20
    assert harness.read().whole
    assert harness.hits() == 30


def test_uncounted_events_write_no_record() -> None:
    harness = Harness()
    worker = harness.worker()
    worker(Refused(operation="o", key_id=None, problem="missing-key", status=400))
    worker.close()
    assert harness.store.acquires == 0


def test_store_counts_is_not_kept_alive_by_its_thread() -> None:
    harness = Harness()
    worker = harness.worker()
    worker(REPLAYED)
    gone = weakref.ref(worker)
    del worker
    gc.collect()
    until_sync(lambda: gone() is None, "the thread holds no reference")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked_child_starts_from_zero_and_the_parent_keeps_its_counts() -> None:
    harness = Harness()
    worker = harness.worker()
    worker(REPLAYED)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        worker(CLAIMED)
        threads = [thread.name for thread in threading.enumerate()]
        worker.close()
        counts = [read_counts(record.outcome) for record in harness.store.scan().records]
        os.write(writing, repr((threads.count("idempotency-counts"), counts)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1000).decode() == "(1, [Counter({'misses': 1})])"
    os.close(reading)
    os.close(writing)
    worker.close()
    assert [read_counts(record.outcome) for record in harness.store.scan().records] == [{"hits": 1}]
