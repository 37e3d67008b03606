"""`FaultyStore` and `SyncFaultyStore` cause the faults that a test injects."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Awaitable
from typing import Any

import anyio
import pytest

from idempotency._core.types import Acquired, Claim, Fingerprint, Owner, State, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.testing import Fault, FaultyStore, SyncFaultyStore

KEY = StorageKey("order-1")
ASK = {"fingerprint": Fingerprint(b"f"), "owner": Owner(b"o"), "lease": 30.0, "retention": 60.0}


@pytest.fixture(params=["async", "sync"])
def faulty(request: pytest.FixtureRequest) -> FaultyStore | SyncFaultyStore:
    return FaultyStore(MemoryStore()) if request.param == "async" else SyncFaultyStore(SyncMemoryStore())


async def resolve(result: Any) -> Any:
    return await result if isinstance(result, Awaitable) else result


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
class TestFaults:
    async def claim(self, store: FaultyStore | SyncFaultyStore) -> Claim:
        reply = await resolve(store.acquire(KEY, **ASK))  # type: ignore[arg-type]
        assert isinstance(reply, Acquired)
        return reply.claim

    async def test_fail_before_raises_and_leaves_the_store_unchanged(
        self, faulty: FaultyStore | SyncFaultyStore
    ) -> None:
        faulty.inject("acquire", [Fault.FAIL_BEFORE])
        with pytest.raises(StoreUnavailable):
            await self.claim(faulty)
        assert await resolve(faulty.get(KEY)) is None
        assert faulty.calls == [("acquire", KEY), ("get", KEY)]

    async def test_fail_after_raises_although_the_call_took_effect(
        self, faulty: FaultyStore | SyncFaultyStore
    ) -> None:
        claim = await self.claim(faulty)
        faulty.inject("complete", [Fault.FAIL_AFTER])
        with pytest.raises(StoreUnavailable):
            await resolve(faulty.complete(claim, b"{}", retention=60))
        assert (await resolve(faulty.get(KEY))).state is State.COMPLETED

    async def test_drop_answers_normally_and_loses_the_record(
        self, faulty: FaultyStore | SyncFaultyStore
    ) -> None:
        faulty.inject("acquire", [Fault.DROP])
        claim = await self.claim(faulty)
        assert await resolve(faulty.renew(claim, lease=30)) is False

    async def test_injected_faults_apply_in_order_and_then_calls_succeed(
        self, faulty: FaultyStore | SyncFaultyStore
    ) -> None:
        claim = await self.claim(faulty)
        faulty.inject("renew", [None, Fault.FAIL_BEFORE])
        assert await resolve(faulty.renew(claim, lease=30)) is True
        with pytest.raises(StoreUnavailable):
            await resolve(faulty.renew(claim, lease=30))
        assert await resolve(faulty.renew(claim, lease=30)) is True

    async def test_an_endless_fault_lasts_until_it_is_replaced(
        self, faulty: FaultyStore | SyncFaultyStore
    ) -> None:
        claim = await self.claim(faulty)
        faulty.inject("release", itertools.repeat(Fault.FAIL_BEFORE))
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await resolve(faulty.release(claim))
        faulty.inject("release", [])
        assert await resolve(faulty.release(claim)) is True

    async def test_a_delayed_call_takes_effect(self, faulty: FaultyStore | SyncFaultyStore) -> None:
        faulty.inject("acquire", [0.001])
        assert (await self.claim(faulty)).attempt == 1

    async def test_a_hung_call_takes_effect_when_it_resumes(self) -> None:
        store = FaultyStore(MemoryStore())
        store.inject("acquire", [Fault.HANG])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.claim, store)
            await anyio.wait_all_tasks_blocked()
            assert await store.get(KEY) is None
            store.resume()
        assert await store.get(KEY) is not None


def test_a_hung_call_in_a_thread_takes_effect_when_the_store_resumes() -> None:
    store = SyncFaultyStore(SyncMemoryStore())
    store.inject("acquire", [Fault.HANG])
    thread = threading.Thread(target=lambda: store.acquire(KEY, **ASK))  # type: ignore[arg-type]
    thread.start()
    assert store.get(KEY) is None
    store.resume()
    thread.join(30)
    assert store.get(KEY) is not None


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_closing_a_faulty_store_closes_its_inner_store() -> None:
    closed: list[str] = []

    class Inner(MemoryStore):
        async def aclose(self) -> None:
            closed.append("async")

    class SyncInner(SyncMemoryStore):
        def close(self) -> None:
            closed.append("sync")

    await FaultyStore(Inner()).aclose()
    SyncFaultyStore(SyncInner()).close()
    assert closed == ["async", "sync"]
