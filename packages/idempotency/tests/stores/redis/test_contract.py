"""Every rule of the store contract, over every way to reach Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import redis
import redis.asyncio
from patience import PATIENCE
from redis_servers import Cluster

from idempotency.store import Store, SyncStore
from idempotency.stores.redis import RedisStore, SyncRedisStore
from idempotency.testing import Clock, RealClock, StoreContract


class _InRealTime(StoreContract):
    """The server keeps the time, in whole milliseconds."""

    max_examples = 8
    steps = 20

    def make_clock(self) -> Clock:
        return RealClock(unit=0.02, resolution=0.004)


class TestRedisStoreContract(_InRealTime):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.url = redis_url

    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        async with redis.asyncio.Redis.from_url(self.url) as client:
            store = RedisStore(client, deadline=PATIENCE)
            yield store
            await store.aclose()


class TestSyncRedisStoreContract(_InRealTime):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.url = redis_url

    @contextmanager
    def open_store(self, clock: Clock) -> Iterator[SyncStore]:
        with redis.Redis.from_url(self.url) as client:
            store = SyncRedisStore(client, deadline=PATIENCE)
            yield store
            store.close()


class TestRedisClusterContract(_InRealTime):
    max_examples = 4

    @pytest.fixture(autouse=True)
    def _cluster(self, redis_cluster: Cluster) -> None:
        self.url = redis_cluster.url

    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        async with redis.asyncio.RedisCluster.from_url(self.url) as client:
            store = RedisStore(client, deadline=PATIENCE)
            yield store
            await store.aclose()
