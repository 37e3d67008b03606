"""Stores whose driver needs asyncio refuse calls under trio, and the error names the store to use there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import trio
from patience import PATIENCE
from psycopg_pool import AsyncConnectionPool

from idempotency import Acquired, Fingerprint, Owner, StorageKey, Store
from idempotency.stores.postgres import PostgresStore
from idempotency.stores.redis import RedisStore, SyncRedisStore
from idempotency.stores.threaded import ThreadedStore

ACQUIRE: dict[str, Any] = {
    "fingerprint": Fingerprint(b"f" * 32),
    "owner": Owner(b"o" * 16),
    "lease": 5.0,
    "retention": 5.0,
}


@pytest.mark.parametrize("name", ["RedisStore", "PostgresStore"])
def test_a_call_under_trio_raises_and_names_the_sync_store(name: str) -> None:
    def store() -> Store:
        if name == "RedisStore":
            return RedisStore(redis.asyncio.Redis(port=1), deadline=PATIENCE)
        return PostgresStore(
            AsyncConnectionPool("postgresql://nowhere.invalid/app", open=False), deadline=PATIENCE
        )

    async def main() -> None:
        with pytest.raises(RuntimeError, match=rf"{name} needs a running asyncio loop.*Sync{name}"):
            await store().acquire(StorageKey("k"), **ACQUIRE)

    trio.run(main)


def test_a_sync_redis_store_in_threads_works_under_trio(redis_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        client = redis.Redis.from_url(redis_url)
        store = ThreadedStore(SyncRedisStore(client, prefix=f"{tmp_path.name}:", deadline=PATIENCE))
        assert isinstance(await store.acquire(StorageKey("k"), **ACQUIRE), Acquired)
        await store.aclose()
        client.close()

    trio.run(main)
