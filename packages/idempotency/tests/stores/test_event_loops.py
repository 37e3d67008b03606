"""Which stores may be used from a second event loop; the others raise at the first call from one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg_pool
import pytest
import redis.asyncio
from patience import PATIENCE, with_long_deadline

from idempotency import Acquired, Claim, Fingerprint, Owner, StorageKey
from idempotency.stores.encrypted import EncryptedStore, KeyRing
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore
from idempotency.stores.redis import RedisStore
from idempotency.stores.sqlite import SQLiteStore
from idempotency.stores.threaded import ThreadedStore
from idempotency.stores.url import open_store

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
CLAIM = Claim(StorageKey("loops"), Owner(b"o" * 16), 1, 1)
CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "acquire": lambda store: store.acquire(CLAIM.key, owner=CLAIM.owner, **ACQUIRE),
    "renew": lambda store: store.renew(CLAIM, lease=30.0),
    "complete": lambda store: store.complete(CLAIM, b"{}", retention=60.0),
    "release": lambda store: store.release(CLAIM),
    "get": lambda store: store.get(CLAIM.key),
    "forget": lambda store: store.forget(CLAIM.key),
    "scan": lambda store: store.scan(),
}
POSTGRES_CALLS = CALLS | {
    "purge": lambda store: store.purge(),
    "create_schema": lambda store: store.create_schema(),
}


async def acquire(store: Any) -> Any:
    return await store.acquire(StorageKey("loops"), owner=Owner(b"o" * 16), **ACQUIRE)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("call", POSTGRES_CALLS)
def test_a_postgres_store_refuses_calls_from_a_second_event_loop(
    postgres_url: str, call: str, wrapped: bool
) -> None:
    inner: Any = open_store(with_long_deadline(postgres_url))
    store: Any = EncryptedStore(inner, KeyRing({"k": bytes(32)}, current="k")) if wrapped else inner
    if wrapped and not hasattr(store, call):
        pytest.skip("the wrapper has no such call")
    with asyncio.Runner() as first:
        assert isinstance(first.run(acquire(store)), Acquired)
        with (
            asyncio.Runner() as second,
            pytest.raises(RuntimeError, match=r"PostgresStore.*SyncPostgresStore"),
        ):
            second.run(POSTGRES_CALLS[call](store))
        first.run(store.aclose())


def test_a_postgres_store_refuses_a_pool_opened_in_another_event_loop_at_its_first_call(
    postgres_url: str,
) -> None:
    pool = psycopg_pool.AsyncConnectionPool(postgres_url, min_size=1, max_size=2, open=False)
    store = PostgresStore(pool, deadline=PATIENCE)
    with asyncio.Runner() as first:
        first.run(pool.open())
        with asyncio.Runner() as second, pytest.raises(RuntimeError, match="another event loop"):
            second.run(acquire(store))
        assert isinstance(first.run(acquire(store)), Acquired), "the refused call has not bound the store"
        first.run(store.aclose())
        first.run(pool.close())


def test_a_postgres_store_refuses_a_second_loop_also_after_the_first_has_ended(postgres_url: str) -> None:
    async def use(store: PostgresStore, pool: Any) -> Any:
        try:
            return await acquire(store)
        finally:
            await pool.close()

    pool = psycopg_pool.AsyncConnectionPool(postgres_url, min_size=1, max_size=2, open=False)
    store = PostgresStore(pool, owns_pool=True, deadline=PATIENCE)
    assert isinstance(asyncio.run(use(store, pool)), Acquired)
    with pytest.raises(RuntimeError, match=re.escape("asyncio.run")):
        asyncio.run(acquire(store))


def test_closing_an_owned_pool_from_another_loop_is_refused(postgres_url: str) -> None:
    store: Any = open_store(with_long_deadline(postgres_url))
    with asyncio.Runner() as first:
        first.run(acquire(store))
        with asyncio.Runner() as second, pytest.raises(RuntimeError, match="another event loop"):
            second.run(store.aclose())
        first.run(store.aclose())


@pytest.mark.parametrize("call", CALLS)
def test_a_redis_store_refuses_calls_from_a_second_event_loop(redis_url: str, call: str) -> None:
    store = RedisStore(redis.asyncio.Redis.from_url(redis_url), owns_client=True, deadline=PATIENCE)
    with asyncio.Runner() as first:
        first.run(acquire(store))
        with asyncio.Runner() as second, pytest.raises(RuntimeError, match=r"RedisStore.*SyncRedisStore"):
            second.run(CALLS[call](store))
        first.run(store.release(CLAIM))
        first.run(store.aclose())


class TestAnyLoop:
    """Stores in memory, in a file or in threads are not bound to a loop."""

    @pytest.mark.parametrize("kind", ["memory", "sqlite", "threaded-memory", "encrypted-sqlite"])
    def test_each_asyncio_run_may_use_the_same_store(self, kind: str, tmp_path: Path) -> None:
        ring = KeyRing({"k": bytes(32)}, current="k")
        store: Any = {
            "memory": MemoryStore,
            "sqlite": lambda: SQLiteStore(tmp_path / "records.db"),
            "threaded-memory": lambda: ThreadedStore(SyncMemoryStore()),
            "encrypted-sqlite": lambda: EncryptedStore(SQLiteStore(tmp_path / "records.db"), ring),
        }[kind]()
        first = asyncio.run(acquire(store))
        assert isinstance(first, Acquired)
        assert asyncio.run(acquire(store)) == first
        assert asyncio.run(store.complete(first.claim, b"{}", retention=60.0))
        asyncio.run(store.aclose())

    def test_a_sync_postgres_store_in_threads_works_in_several_event_loops(self, postgres_url: str) -> None:
        with psycopg_pool.ConnectionPool(postgres_url, min_size=1, max_size=2, open=False) as pool:
            store = ThreadedStore(SyncPostgresStore(pool, deadline=PATIENCE))
            first = asyncio.run(acquire(store))
            assert isinstance(first, Acquired)
            assert asyncio.run(acquire(store)).claim.fence == first.claim.fence
            assert asyncio.run(store.release(first.claim))
            asyncio.run(store.aclose())
