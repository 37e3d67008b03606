"""The memory store: the contract, and what is its own: bounds, sweeping, threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from idempotency.store import Store, SyncStore
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.testing import Clock, RealClock, StoreContract


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
