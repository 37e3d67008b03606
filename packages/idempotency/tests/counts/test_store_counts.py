"""Counts in a store: written once a minute, never twice, by processes that know nothing of each other."""

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

HIT = Replayed(operation="POST /charges", key_id="0bafe22156d2", age=1.0, waited=0.0)
MISS = Claimed(operation="POST /charges", key_id="0bafe22156d2", attempt=1, waited=0.0)
BASE = 1_700_000_040.0  # the beginning of a minute


class Shop:
    """A store, the time of all, and what the dashboard reads."""

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
    """Loses the next answers, before or after the step took effect."""

    lose_acquired = lose_completed = down = 0
    asked = 0

    def acquire(self, key: StorageKey, **settings: Any) -> Reply:
        self.asked += 1
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


def test_nothing_is_written_before_the_minute_is_over_and_then_once() -> None:
    shop = Shop()
    worker = shop.worker()
    worker(HIT)
    worker(HIT)
    worker.write()
    assert shop.store.scan().records == ()
    shop.now += 60.0
    worker.write()
    worker.write()
    assert len(shop.store.scan().records) == 1
    assert shop.read().per_minute["hits"][-1] == 2
    assert shop.hits() == 2, "reading again adds nothing"


def test_late_counts_are_added_to_those_already_read() -> None:
    shop = Shop()
    first, second = shop.worker(), shop.worker()
    first(HIT)
    second(HIT)
    shop.now += 60.0
    first.write()
    assert shop.hits() == 1
    shop.now += 600.0
    second.write()
    assert shop.hits() == 2
    assert shop.read().per_minute["hits"][-11] == 2, "in the minute in which it happened"


@pytest.mark.parametrize("lost", ["lose_acquired", "lose_completed"])
def test_a_lost_answer_neither_loses_nor_doubles_counts(lost: str, caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    worker = shop.worker()
    worker(HIT)
    worker(MISS)
    shop.now += 60.0
    setattr(shop.store, lost, 1)
    with caplog.at_level(logging.WARNING, "idempotency"):
        worker.write()
    assert "will be later" in caplog.text
    worker.write()
    told = shop.read().per_minute
    assert (sum(told["hits"]), sum(told["misses"])) == (1, 1)


def test_counts_survive_an_outage_of_less_than_an_hour_and_memory_stays_bounded_in_a_longer_one() -> None:
    shop = Shop()
    worker = shop.worker()
    shop.store.down = 1
    for _ in range(200):
        worker(HIT)
        shop.now += 60.0
        worker.write()
    shop.store.down = 0
    worker.write()
    assert shop.hits() == 59, "the minutes that are still shown, without the one that is not over"


def test_the_end_of_a_process_writes_the_minute_that_is_not_over() -> None:
    shop = Shop()
    worker = shop.worker()
    worker(HIT)
    worker.close()
    worker.close()
    worker(HIT)
    worker.write(whole_minutes=False)
    shop.now += 60.0
    assert shop.hits() == 1, "what comes after the end is not counted"


def test_a_place_whose_writer_died_is_left_out_and_one_being_written_is_waited_for() -> None:
    shop = Shop()
    settings = {"fingerprint": FINGERPRINT, "owner": Owner(b"d" * 16), "lease": 60.0, "retention": 600.0}
    shop.store.acquire(count_key(int(BASE // 60), 0), **settings)
    worker = shop.worker()
    worker(HIT)
    shop.now += 59.0
    worker.close()
    shop.now += 0.9
    assert shop.hits() == 0
    shop.now += 1.0
    assert shop.hits() == 1


def test_records_of_another_form_at_a_place_do_no_harm() -> None:
    shop = Shop()
    for place, outcome in enumerate(
        [b'{"format":1,"outcome":"value","value":[1]}', b"{}", encode_counts({"hits": 2})]
    ):
        settings = {"fingerprint": FINGERPRINT, "owner": Owner(b"x" * 16), "lease": 60.0, "retention": 6000.0}
        reply = shop.store.acquire(count_key(int(BASE // 60), place), **settings)
        shop.store.complete(reply.claim, outcome, retention=6000.0)
    shop.now += 60.0
    assert shop.hits() == 2
    assert (
        read_counts(b'{"format":1,"outcome":"value","value":{"hits":-1,"misses":"2","conflicts":true}}') == {}
    )


def test_a_read_is_bounded_and_goes_on_where_it_stopped() -> None:
    shop = Shop()
    for _ in range(30):
        worker = shop.worker()
        worker(HIT)
        worker.close()
    shop.now += 60.0
    first = shop.read(limit=10)
    assert (first.whole, sum(first.per_minute["hits"])) == (False, 10)
    assert sum(shop.read(limit=10).per_minute["hits"]) == 20
    assert shop.read().whole
    assert shop.hits() == 30


def test_other_events_cost_no_record() -> None:
    shop = Shop()
    worker = shop.worker()
    worker(Refused(operation="o", key_id=None, problem="missing-key", status=400))
    worker.close()
    assert shop.store.asked == 0


def test_it_is_not_kept_alive_by_its_thread() -> None:
    shop = Shop()
    worker = shop.worker()
    worker(HIT)
    gone = weakref.ref(worker)
    del worker
    gc.collect()
    until_sync(lambda: gone() is None, "the thread lets go of what it asked when to write")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_counts_anew_and_its_parents_counts_are_its_parents() -> None:
    shop = Shop()
    worker = shop.worker()
    worker(HIT)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        worker(MISS)
        threads = [thread.name for thread in threading.enumerate()]
        worker.close()
        told = [read_counts(record.outcome) for record in shop.store.scan().records]
        os.write(writing, repr((threads.count("idempotency-counts"), told)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1000).decode() == "(1, [Counter({'misses': 1})])"
    os.close(reading)
    os.close(writing)
    worker.close()
    assert [read_counts(record.outcome) for record in shop.store.scan().records] == [{"hits": 1}]
