"""Every rule of the store contract, over PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from patience import PATIENCE
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency.store import Store, SyncStore
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore
from idempotency.testing import Clock, RealClock, StoreContract


class _InRealTime(StoreContract):
    """The server keeps the time."""

    max_examples = 4
    steps = 20

    def make_clock(self) -> Clock:
        return RealClock(unit=0.03, resolution=0.004)

    @pytest.fixture(autouse=True)
    def _server(self, postgres_url: str) -> None:
        self.url = postgres_url


class TestPostgresStoreContract(_InRealTime):
    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        async with AsyncConnectionPool(self.url, min_size=1, max_size=8, open=False) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            yield store
            await store.aclose()


class TestSyncPostgresStoreContract(_InRealTime):
    @contextmanager
    def open_store(self, clock: Clock) -> Iterator[SyncStore]:
        with ConnectionPool(self.url, min_size=1, max_size=8, open=False) as pool:
            store = SyncPostgresStore(pool, deadline=PATIENCE)
            yield store
            store.close()
