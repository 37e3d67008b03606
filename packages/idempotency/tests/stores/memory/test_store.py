"""The memory store: the contract, its bound on records, deletion of expired records, scanning, threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency._core.types import Acquired, Claim, Completed, Fingerprint, Owner, Reply, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.store import Inspectable, Purgeable, Store, SyncInspectable, SyncPurgeable, SyncStore
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.testing import Clock, FakeClock, RealClock, StoreContract


class TestMemoryStoreContract(StoreContract):
    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        yield MemoryStore(clock=clock)


class TestMemoryStoreContractInRealTime(StoreContract):
    """The contract as it runs for stores whose clock cannot be moved."""

    max_examples = 4
    steps = 20

    def make_clock(self) -> Clock:
        return RealClock(unit=0.005, resolution=0.002)

    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        yield MemoryStore()


class TestSyncMemoryStoreContract(StoreContract):
    @contextmanager
    def open_store(self, clock: Clock) -> Iterator[SyncStore]:
        yield SyncMemoryStore(clock=clock)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def acquire(
    store: SyncMemoryStore, key: str, *, owner: bytes = b"o", lease: float = 30.0, retention: float = 3600.0
) -> Reply:
    return store.acquire(
        StorageKey(key), fingerprint=Fingerprint(b"f"), owner=Owner(owner), lease=lease, retention=retention
    )


def claim(store: SyncMemoryStore, key: str, *, lease: float = 30.0, retention: float = 3600.0) -> Claim:
    reply = acquire(store, key, lease=lease, retention=retention)
    assert isinstance(reply, Acquired)
    return reply.claim


def complete(store: SyncMemoryStore, key: str, *, retention: float = 3600.0) -> None:
    assert store.complete(claim(store, key), b"{}", retention=retention)


def keys(store: SyncMemoryStore) -> list[str]:
    return [record.key for record in store.scan(limit=1_000_000).records]


class TestBounds:
    def test_a_full_store_evicts_the_completed_record_that_expires_first(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(max_records=3, clock=clock)
        complete(store, "late", retention=3600)
        complete(store, "soon", retention=60)
        claim(store, "running", lease=1, retention=1)
        claim(store, "new")
        assert keys(store) == ["late", "new", "running"]

    def test_a_record_that_was_taken_over_is_evicted_by_its_new_expiry_not_by_its_old_one(
        self, clock: FakeClock
    ) -> None:
        store = SyncMemoryStore(max_records=2, clock=clock)
        claim(store, "retried", lease=1, retention=5)
        clock.advance(2)
        taken_over = acquire(store, "retried", owner=b"p")
        assert isinstance(taken_over, Acquired)
        assert store.complete(taken_over.claim, b"{}", retention=3600)
        complete(store, "soon", retention=60)
        claim(store, "new")
        assert keys(store) == ["new", "retried"]

    def test_a_full_store_evicts_the_oldest_of_records_that_expire_together(self, clock: FakeClock) -> None:
        """The client of the newest record is the most likely to retry."""
        store = SyncMemoryStore(max_records=3, clock=clock)
        for key in "abc":
            complete(store, key)
        claim(store, "d")
        assert keys(store) == ["b", "c", "d"]

    def test_a_full_store_never_evicts_a_running_record(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(max_records=2, clock=clock)
        claims = [claim(store, "a"), claim(store, "b")]
        with pytest.raises(StoreUnavailable, match="all 2 records"):
            acquire(store, "c")
        assert [store.renew(held, lease=30) for held in claims] == [True, True]
        store.release(claims[0])
        assert isinstance(acquire(store, "c"), Acquired)

    def test_a_full_store_still_answers_for_its_own_keys(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(max_records=1, clock=clock)
        held = claim(store, "a")
        assert acquire(store, "a") == Acquired(held)
        store.complete(held, b"{}", retention=60)
        assert isinstance(acquire(store, "a"), Completed)

    @pytest.mark.parametrize("late", [0.0, 1.0, 40.0])
    def test_an_abandoned_claim_makes_room_once_it_has_expired(self, clock: FakeClock, late: float) -> None:
        store = SyncMemoryStore(max_records=1, clock=clock)
        claim(store, "abandoned", lease=5, retention=5)
        clock.advance(10 + late)
        assert isinstance(acquire(store, "new"), Acquired)
        assert keys(store) == ["new"]

    def test_a_running_record_skipped_by_an_eviction_is_deleted_after_it_expires(
        self, clock: FakeClock
    ) -> None:
        store = SyncMemoryStore(max_records=2, clock=clock)
        held = claim(store, "a", lease=5, retention=5)
        claim(store, "abandoned", lease=5, retention=5)
        with pytest.raises(StoreUnavailable):
            acquire(store, "b")
        store.release(held)
        clock.advance(60)
        claim(store, "c")
        assert set(store._entries) == {"c"}, "also where the store is not full"

    def test_max_records_of_zero_is_refused(self) -> None:
        with pytest.raises(ValueError, match="max_records"):
            MemoryStore(max_records=0)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["claim", "complete", "release", "renew", "forget", "purge"]),
                st.sampled_from("abcdefg"),
                st.integers(1, 100),
            ),
            max_size=60,
        )
    )
    def test_no_history_exceeds_the_bound_or_loses_a_live_claim(
        self, history: list[tuple[str, str, int]]
    ) -> None:
        clock = FakeClock()
        store = SyncMemoryStore(max_records=4, clock=clock)
        live: dict[str, tuple[Claim, float, int]] = {}  # the claim, the end of its lease, and its retention
        for step, key, seconds in history:
            held = live.get(key)
            if step == "claim":
                try:
                    reply = acquire(store, key, lease=seconds, retention=seconds)
                except StoreUnavailable:
                    assert len(live) == 4
                else:
                    if isinstance(reply, Acquired):  # all of one owner, which gets its own claim again (R2)
                        _, end, kept = held or (None, 0.0, seconds)
                        live[key] = (reply.claim, max(end, clock() + seconds), kept)
            elif step == "complete" and held:
                assert store.complete(live.pop(key)[0], b"{}", retention=seconds)
            elif step == "release" and held:
                assert store.release(live.pop(key)[0])
            elif step == "renew" and held:
                assert store.renew(held[0], lease=seconds)
                live[key] = (held[0], max(held[1], clock() + seconds), held[2])
            elif step == "forget":
                store.forget(StorageKey(key))
                live.pop(key, None)
            elif step == "purge":
                clock.advance(seconds)
                store.purge()
            live = {k: (c, end, kept) for k, (c, end, kept) in live.items() if clock() < end + kept}
            assert len(store._entries) <= 4
            assert set(live) <= set(keys(store))


class TestSweeping:
    def test_each_acquire_deletes_four_expired_records_until_none_is_left(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        for number in range(1_000):
            complete(store, f"done-{number}", retention=60)
            claim(store, f"abandoned-{number}", lease=30, retention=30)
        clock.advance(80)
        sizes = [len(store._entries)]
        for number in range(500):
            acquire(store, f"new-{number}")
            sizes.append(len(store._entries))
        assert {before - after for before, after in pairwise(sizes)} == {3}, (
            "four records are deleted for each new one"
        )
        assert sizes[-1] == 500

    def test_a_renewed_record_is_not_purged_at_its_old_expiry(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        held = claim(store, "long", lease=10, retention=10)
        for _ in range(10):
            clock.advance(9)
            assert store.renew(held, lease=10) is True
            assert store.purge() == 0
        clock.advance(40)
        assert store.purge() == 1

    def test_a_record_completed_with_a_shorter_retention_is_purged_by_that_retention(
        self, clock: FakeClock
    ) -> None:
        store = SyncMemoryStore(clock=clock)
        held = claim(store, "k", retention=3600)
        assert store.complete(held, b"{}", retention=60)
        clock.advance(60 + 16)
        assert store.purge() == 1

    def test_completed_records_are_purged_within_80_s_of_their_expiry(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        for number, lease in enumerate((1, 30, 60, 70, 300)):
            held = claim(store, str(number), lease=lease, retention=60)
            assert store.complete(held, b"{}", retention=60)
        clock.advance(60 + 5 * 16)
        assert store.purge() == 5

    def test_a_record_skipped_by_an_eviction_can_be_evicted_after_its_completion(
        self, clock: FakeClock
    ) -> None:
        store = SyncMemoryStore(max_records=2, clock=clock)
        skipped = claim(store, "skipped", lease=10, retention=10)
        complete(store, "done")
        claim(store, "new", lease=10, retention=10)
        assert keys(store) == ["new", "skipped"]
        assert store.complete(skipped, b"{}", retention=10)
        claim(store, "newer")
        assert keys(store) == ["new", "newer"]

    def test_a_purge_deletes_up_to_its_limit(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        for number in range(5):
            complete(store, str(number), retention=1)
        clock.advance(60)
        assert [store.purge(limit=3), store.purge(limit=3), store.purge(limit=3)] == [3, 2, 0]

    def test_expired_records_leave_no_entries_in_the_expiry_wheels(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(max_records=10, clock=clock)
        for number in range(10_000):
            complete(store, f"k{number}", retention=60 + number % 7)
            clock.advance(1)
        scheduled, buckets = 0, 0
        for both in (store._wheel, store._aside):
            for bucket in both._buckets.values():
                buckets += 1
                link = bucket.after
                while link is not bucket:
                    assert link.before.after is link
                    scheduled, link = scheduled + 1, link.after
        assert scheduled == len(store._entries) <= 10
        assert buckets < 600, "a bucket for each 16 s of an hour, in each of the two"


class TestInspecting:
    def test_a_scan_lists_live_records_in_key_order(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        for key in "gfedcba":
            claim(store, key)
        claim(store, "expired", lease=1, retention=1)
        clock.advance(2)
        pages = [store.scan(limit=3)]
        while pages[-1].cursor is not None:
            pages.append(store.scan(limit=3, cursor=pages[-1].cursor))
        assert [record.key for page in pages for record in page.records] == list("abcdefg")

    def test_forget_removes_any_record_and_returns_whether_it_existed(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        before = claim(store, "k").fence
        complete(store, "done")
        assert [store.forget(StorageKey(key)) for key in ("k", "done", "absent")] == [True, True, False]
        assert claim(store, "k").fence > before
        claim(store, "expired", lease=1, retention=1)
        clock.advance(2)
        assert store.forget(StorageKey("expired")) is False

    def test_both_stores_are_inspectable_and_purgeable(self) -> None:
        store, sync_store = MemoryStore(), SyncMemoryStore()
        assert isinstance(store, Inspectable)
        assert isinstance(store, Purgeable)
        assert isinstance(sync_store, SyncInspectable)
        assert isinstance(sync_store, SyncPurgeable)

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
    async def test_the_async_store_can_scan_purge_and_forget(self) -> None:
        store = MemoryStore()
        await store.acquire(
            StorageKey("k"), fingerprint=Fingerprint(b"f"), owner=Owner(b"o"), lease=30, retention=60
        )
        assert [record.key for record in (await store.scan()).records] == ["k"]
        assert await store.purge() == 0
        assert await store.forget(StorageKey("k")) is True


def test_eight_threads_are_granted_each_key_once_with_distinct_fences() -> None:
    store = SyncMemoryStore()

    def work(thread: int) -> list[Reply]:
        return [acquire(store, f"k{number}", owner=bytes([thread])) for number in range(500)]

    with ThreadPoolExecutor(8) as pool:
        granted = [
            r.claim for replies in pool.map(work, range(8)) for r in replies if isinstance(r, Acquired)
        ]
    assert (
        len(granted)
        == len({claim.key for claim in granted})
        == len({claim.fence for claim in granted})
        == 500
    )


def test_a_new_store_starts_above_the_fences_of_an_earlier_one() -> None:
    before = claim(SyncMemoryStore(), "k").fence
    assert claim(SyncMemoryStore(), "k").fence > before
