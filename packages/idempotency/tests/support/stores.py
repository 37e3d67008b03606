"""The four kinds of store, opened by name, here and in the processes that tests start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from idempotency.store import Store

__all__ = ["KINDS", "SHARED", "open_store"]

SHARED = ("sqlite", "redis", "postgres")
"""The kinds that several processes can share."""

KINDS = ("memory", *SHARED)


@asynccontextmanager
async def open_store(kind: str, location: str = "") -> AsyncIterator[Store]:
    """A store of one kind; *location* is a path or URL where it needs one."""
    if kind == "memory":
        from idempotency.stores.memory import MemoryStore

        yield MemoryStore()
    elif kind == "sqlite":
        from idempotency.stores.sqlite import SQLiteStore

        store = SQLiteStore(location)
        try:
            yield store
        finally:
            await store.aclose()
    elif kind == "redis":
        from idempotency.stores.redis import RedisStore
        from redis.asyncio import Redis

        async with Redis.from_url(location) as client:
            store = RedisStore(client)
            try:
                yield store
            finally:
                await store.aclose()
    else:
        from idempotency.stores.postgres import PostgresStore
        from psycopg_pool import AsyncConnectionPool

        async with AsyncConnectionPool(location, min_size=1, max_size=8, open=False) as pool:
            yield PostgresStore(pool)
