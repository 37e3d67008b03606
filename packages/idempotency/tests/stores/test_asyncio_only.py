"""A store whose driver needs asyncio says so under trio, and what to use there."""

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

ASK: dict[str, Any] = {
    "fingerprint": Fingerprint(b"f" * 32),
    "owner": Owner(b"o" * 16),
    "lease": 5.0,
    "retention": 5.0,
}


@pytest.mark.parametrize("name", ["RedisStore", "PostgresStore"])
def test_under_trio_the_store_is_refused_with_a_way_out(name: str) -> None:
    def store() -> Store:
        if name == "RedisStore":
            return RedisStore(redis.asyncio.Redis(port=1), deadline=PATIENCE)
        return PostgresStore(
            AsyncConnectionPool("postgresql://nowhere.invalid/app", open=False), deadline=PATIENCE
        )

    async def main() -> None:
        with pytest.raises(RuntimeError, match=rf"{name} needs a running asyncio loop.*Sync{name}"):
            await store().acquire(StorageKey("k"), **ASK)

    trio.run(main)


def test_under_trio_redis_is_reached_in_threads(redis_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        client = redis.Redis.from_url(redis_url)
        store = ThreadedStore(SyncRedisStore(client, prefix=f"{tmp_path.name}:", deadline=PATIENCE))
        assert isinstance(await store.acquire(StorageKey("k"), **ASK), Acquired)
        await store.aclose()
        client.close()

    trio.run(main)
