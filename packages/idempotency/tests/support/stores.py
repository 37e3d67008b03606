"""The four kinds of store, opened by name, here and in the processes that tests start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from patience import PATIENCE

import idempotency
from idempotency.store import Store

__all__ = ["KINDS", "SHARED", "background_tasks_done", "open_store"]

SHARED = ("sqlite", "redis", "postgres")
"""The kinds that several processes can share."""

KINDS = ("memory", *SHARED)


async def background_tasks_done(*, cancel: bool = False) -> None:
    """Wait for background tasks to end, such as the late release of a claim."""
    package = str(Path(idempotency.__file__).parent)
    tasks = [task for task in asyncio.all_tasks() if package in task.get_coro().cr_code.co_filename]
    if cancel:
        for task in tasks:
            task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=8)


@asynccontextmanager
async def open_store(kind: str, location: str = "") -> AsyncIterator[Store]:
    """A store of one kind; *location* is a path or URL where it needs one."""
    async with _opened(kind, location) as store:
        try:
            yield store
        finally:
            await background_tasks_done(cancel=True)  # the test is over: no background task may outlive it
            await store.aclose()


@asynccontextmanager
async def _opened(kind: str, location: str) -> AsyncIterator[Store]:
    if kind == "memory":
        from idempotency.stores.memory import MemoryStore

        yield MemoryStore()
    elif kind == "sqlite":
        from idempotency.stores.sqlite import SQLiteStore

        yield SQLiteStore(location)
    elif kind == "redis":
        from redis.asyncio import Redis

        from idempotency.stores.redis import RedisStore

        async with Redis.from_url(location) as client:
            yield RedisStore(client, deadline=PATIENCE)
    else:
        from psycopg_pool import AsyncConnectionPool

        from idempotency.stores.postgres import PostgresStore

        async with AsyncConnectionPool(location, min_size=1, max_size=8, open=False) as pool:
            yield PostgresStore(pool, deadline=PATIENCE)
