"""
The PostgreSQL store behind PgBouncer in transaction mode: each statement may run in another server process.

Nothing may rest on a session: no prepared statement, no setting, no lock that outlives its transaction.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
from patience import PATIENCE, until, with_long_deadline
from pgbouncer import SERVERS
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency import Acquired, Completed, Fingerprint, Owner, Running, StorageKey
from idempotency._core.types import Reply
from idempotency.errors import StoreUnavailable
from idempotency.store import Store, SyncStore
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore
from idempotency.stores.url import open_store
from idempotency.testing import Clock, RealClock, StoreContract

UNPREPARED = {"prepare_threshold": None}


class _Pooled(StoreContract):
    max_examples = 2
    steps = 15

    def make_clock(self) -> Clock:
        return RealClock(unit=0.03, resolution=0.004)

    @pytest.fixture(autouse=True)
    def _server(self, pgbouncer_url: str) -> None:
        self.url = pgbouncer_url


class TestPooledPostgresStoreContract(_Pooled):
    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        async with AsyncConnectionPool(
            self.url, min_size=1, max_size=8, open=False, kwargs=UNPREPARED
        ) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            yield store
            await store.aclose()


class TestPooledSyncPostgresStoreContract(_Pooled):
    @contextmanager
    def open_store(self, clock: Clock) -> Iterator[SyncStore]:
        with ConnectionPool(self.url, min_size=1, max_size=8, open=False, kwargs=UNPREPARED) as pool:
            store = SyncPostgresStore(pool, deadline=PATIENCE)
            yield store
            store.close()


def new_key() -> StorageKey:
    return StorageKey(f"pooled-{secrets.token_hex(8)}")


async def acquire(store: Store, key: StorageKey) -> Reply:
    owner = Owner(secrets.token_bytes(16))
    return await store.acquire(
        key, fingerprint=Fingerprint(b"f" * 32), owner=owner, lease=30.0, retention=60.0
    )


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestManyClients:
    async def test_each_key_is_granted_once_and_no_advisory_lock_is_left(
        self, pgbouncer_url: str, postgres_url: str
    ) -> None:
        keys = [new_key() for _ in range(40)]
        runs: list[StorageKey] = []

        async def worker(store: Store) -> None:
            for key in keys:
                while not isinstance(reply := await acquire(store, key), Completed):
                    if isinstance(reply, Running):
                        continue
                    runs.append(key)
                    assert await store.complete(reply.claim, b"{}", retention=60.0)

        async with AsyncConnectionPool(
            pgbouncer_url, min_size=8, max_size=8, open=False, kwargs=UNPREPARED
        ) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            await asyncio.gather(*(worker(store) for _ in range(8)))
            await store.aclose()
        assert sorted(runs) == sorted(keys)
        with psycopg.connect(postgres_url, autocommit=True) as server:
            left = server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
            assert left == (0,)
            # Backends of connections that earlier tests closed may still exit; those of the pooler stay.
            used = (
                f"SELECT count(*) <= {SERVERS} FROM pg_stat_activity WHERE backend_type = 'client backend' "
                "AND pid <> pg_backend_pid()"
            )
            await until(lambda: server.execute(used.encode()).fetchone() == (True,))

    async def test_complete_in_commits_or_rolls_back_with_its_transaction(self, pgbouncer_url: str) -> None:
        async with AsyncConnectionPool(
            pgbouncer_url, min_size=2, max_size=2, open=False, kwargs=UNPREPARED
        ) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            await store.create_schema()
            for commit in (False, True):
                key = new_key()
                reply = await acquire(store, key)
                assert isinstance(reply, Acquired)
                async with pool.connection() as connection, connection.transaction(force_rollback=not commit):
                    assert await store.complete_in(connection, reply.claim, b"{}", retention=60.0)
                assert isinstance(await acquire(store, key), Completed if commit else Running)
            await store.aclose()

    async def test_a_url_can_switch_prepared_statements_off(self, pgbouncer_url: str) -> None:
        given = psycopg.conninfo.conninfo_to_dict(pgbouncer_url)
        url = (
            f"postgresql:///{given['dbname']}?host={given['host']}&port={given['port']}&user={given['user']}"
        )
        store = open_store(with_long_deadline(f"{url}&prepare_threshold=none&pool_size=4"))
        for _ in range(8):
            replies = await asyncio.gather(*(acquire(store, new_key()) for _ in range(4)))
            assert all(isinstance(reply, Acquired) for reply in replies)
        await store.aclose()

    async def test_prepared_statements_through_an_old_pgbouncer_raise_store_unavailable_with_advice(
        self, pgbouncer_url: str, pgbouncer_version: tuple[int, ...]
    ) -> None:
        """From 1.21 on PgBouncer supports them (`max_prepared_statements`, which Debian's 1.18 does not know)."""
        async with AsyncConnectionPool(pgbouncer_url, min_size=6, max_size=6, open=False) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            outcomes: list[object] = []
            for _ in range(12):
                outcomes += await asyncio.gather(
                    *(acquire(store, new_key()) for _ in range(6)), return_exceptions=True
                )
            failed = [outcome for outcome in outcomes if not isinstance(outcome, Acquired)]
            await store.aclose()
        assert bool(failed) is (pgbouncer_version < (1, 21))
        for error in failed:
            assert isinstance(error, StoreUnavailable)
            assert "prepare_threshold" in str(error)
