"""The memory store: the contract, and what is its own: bounds, sweeping, threads."""

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
    """The contract's own path for stores whose clock cannot be moved."""

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
    def test_a_full_store_forgets_a_completed_record_nearest_to_its_expiry(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(max_records=3, clock=clock)
        complete(store, "late", retention=3600)
        complete(store, "soon", retention=60)
        claim(store, "running", lease=1, retention=1)
        claim(store, "new")
        assert keys(store) == ["late", "new", "running"]

    def test_a_record_that_was_taken_over_is_not_forgotten_by_the_expiry_of_the_run_before(
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

    def test_a_full_store_forgets_the_oldest_of_records_made_together(self, clock: FakeClock) -> None:
        """The newest is the one whose answer may still be on its way, and its client about to ask again."""
        store = SyncMemoryStore(max_records=3, clock=clock)
        for key in "abc":
            complete(store, key)
        claim(store, "d")
        assert keys(store) == ["b", "c", "d"]

    def test_a_full_store_never_forgets_a_running_record(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(max_records=2, clock=clock)
        claims = [claim(store, "a"), claim(store, "b")]
        with pytest.raises(StoreUnavailable, match="all 2 records"):
            acquire(store, "c")
        assert [store.renew(held, lease=30) for held in claims] == [True, True]
        store.release(claims[0])
        assert isinstance(acquire(store, "c"), Acquired)

    def test_a_full_store_still_answers_for_the_keys_it_has(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(max_records=1, clock=clock)
        held = claim(store, "a")
        assert acquire(store, "a") == Acquired(held)
        store.complete(held, b"{}", retention=60)
        assert isinstance(acquire(store, "a"), Completed)

    @pytest.mark.parametrize("late", [0.0, 1.0, 40.0])
    def test_an_abandoned_claim_makes_room_as_soon_as_it_has_expired(
        self, clock: FakeClock, late: float
    ) -> None:
        store = SyncMemoryStore(max_records=1, clock=clock)
        claim(store, "abandoned", lease=5, retention=5)
        clock.advance(10 + late)
        assert isinstance(acquire(store, "new"), Acquired)
        assert keys(store) == ["new"]

    def test_a_run_skipped_by_an_eviction_is_deleted_after_it_expires(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(max_records=2, clock=clock)
        held = claim(store, "a", lease=5, retention=5)
        claim(store, "abandoned", lease=5, retention=5)
        with pytest.raises(StoreUnavailable):
            acquire(store, "b")
        store.release(held)
        clock.advance(60)
        claim(store, "c")
        assert set(store._entries) == {"c"}, "not only where space is short"

    def test_a_bound_of_nothing_is_refused(self) -> None:
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
                    if isinstance(reply, Acquired):  # of one owner: who asks again gets its own claim (R2)
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
    def test_expired_records_leave_a_few_at_a_time_and_all_in_the_end(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        for number in range(1_000):
            complete(store, f"done-{number}", retention=60)
            claim(store, f"abandoned-{number}", lease=30, retention=30)
        clock.advance(80)
        sizes = [len(store._entries)]
        for number in range(500):
            acquire(store, f"new-{number}")
            sizes.append(len(store._entries))
        assert {before - after for before, after in pairwise(sizes)} == {3}, "four go for each that comes"
        assert sizes[-1] == 500

    def test_a_renewed_record_survives_the_sweep_of_its_old_slot(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        held = claim(store, "long", lease=10, retention=10)
        for _ in range(10):
            clock.advance(9)
            assert store.renew(held, lease=10) is True
            assert store.purge() == 0
        clock.advance(40)
        assert store.purge() == 1

    def test_a_record_kept_for_less_than_its_claim_said_leaves_on_its_own_time(
        self, clock: FakeClock
    ) -> None:
        store = SyncMemoryStore(clock=clock)
        held = claim(store, "k", retention=3600)
        assert store.complete(held, b"{}", retention=60)
        clock.advance(60 + 16)
        assert store.purge() == 1

    def test_a_completed_record_outstays_its_expiry_by_little_more_than_a_minute(
        self, clock: FakeClock
    ) -> None:
        store = SyncMemoryStore(clock=clock)
        for number, lease in enumerate((1, 30, 60, 70, 300)):
            held = claim(store, str(number), lease=lease, retention=60)
            assert store.complete(held, b"{}", retention=60)
        clock.advance(60 + 5 * 16)
        assert store.purge() == 5

    def test_a_running_record_that_was_passed_over_leaves_like_any_other_once_it_is_done(
        self, clock: FakeClock
    ) -> None:
        store = SyncMemoryStore(max_records=2, clock=clock)
        passed = claim(store, "passed", lease=10, retention=10)
        complete(store, "done")
        claim(store, "new", lease=10, retention=10)
        assert keys(store) == ["new", "passed"]
        assert store.complete(passed, b"{}", retention=10)
        claim(store, "newer")
        assert keys(store) == ["new", "newer"]

    def test_purge_keeps_to_its_limit(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        for number in range(5):
            complete(store, str(number), retention=1)
        clock.advance(60)
        assert [store.purge(limit=3), store.purge(limit=3), store.purge(limit=3)] == [3, 2, 0]

    def test_expired_records_leave_nothing_in_memory(self, clock: FakeClock) -> None:
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
    def test_a_scan_pages_through_the_live_records_in_key_order(self, clock: FakeClock) -> None:
        store = SyncMemoryStore(clock=clock)
        for key in "gfedcba":
            claim(store, key)
        claim(store, "expired", lease=1, retention=1)
        clock.advance(2)
        pages = [store.scan(limit=3)]
        while pages[-1].cursor is not None:
            pages.append(store.scan(limit=3, cursor=pages[-1].cursor))
        assert [record.key for page in pages for record in page.records] == list("abcdefg")

    def test_forget_removes_any_record_and_says_whether_it_was_there(self, clock: FakeClock) -> None:
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
    async def test_the_async_store_offers_the_same(self) -> None:
        store = MemoryStore()
        await store.acquire(
            StorageKey("k"), fingerprint=Fingerprint(b"f"), owner=Owner(b"o"), lease=30, retention=60
        )
        assert [record.key for record in (await store.scan()).records] == ["k"]
        assert await store.purge() == 0
        assert await store.forget(StorageKey("k")) is True


def test_threads_see_one_grant_for_each_key_and_no_fence_twice() -> None:
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


def test_a_new_process_starts_above_the_fences_of_the_last() -> None:
    before = claim(SyncMemoryStore(), "k").fence
    assert claim(SyncMemoryStore(), "k").fence > before
