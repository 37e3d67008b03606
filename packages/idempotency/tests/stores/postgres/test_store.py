"""The PostgreSQL store: complete_in, races, locks, clocks, lost connections, the schema, purging and scanning."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from patience import PATIENCE, until, until_forgotten, until_lapsed
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, Running, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.store import Inspectable, Purgeable, SyncInspectable, SyncPurgeable
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore, schema_sql

pytestmark = pytest.mark.anyio

FINGERPRINT = Fingerprint(b"\x00\xff" * 16)
OUTCOME = b'{"body":"caf\xc3\xa9"}'


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"record-{secrets.token_hex(8)}")


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(postgres_url, min_size=1, max_size=10, open=False) as pool:
        yield pool


@pytest.fixture
async def store(pool: AsyncConnectionPool) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(pool, deadline=PATIENCE)
    yield store
    await store.aclose()


@pytest.fixture
async def own_table(pool: AsyncConnectionPool) -> AsyncIterator[PostgresStore]:
    """A store with a table for one test."""
    table = f"t_{secrets.token_hex(6)}"
    store = PostgresStore(pool, table=table, deadline=PATIENCE)
    await store.create_schema()
    yield store
    await store.aclose()
    async with pool.connection() as connection:
        await connection.execute(f"DROP TABLE {table}; DROP SEQUENCE {table}_fence".encode())


def new_owner() -> Owner:
    return Owner(secrets.token_bytes(16))


async def claim(
    store: PostgresStore, key: StorageKey, *, lease: float = 30.0, retention: float = 60.0
) -> Claim:
    reply = await store.acquire(
        key, fingerprint=FINGERPRINT, owner=new_owner(), lease=lease, retention=retention
    )
    assert isinstance(reply, Acquired)
    return reply.claim


async def scalar(connection: psycopg.AsyncConnection[Any], query: str) -> Any:
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


class TestCompleteIn:
    @pytest.fixture
    async def ledger(self, pool: AsyncConnectionPool) -> AsyncIterator[str]:
        name = f"ledger_{secrets.token_hex(6)}"
        async with pool.connection() as connection:
            await connection.execute(f"CREATE TABLE {name} (entry text)".encode())
        yield name
        async with pool.connection() as connection:
            await connection.execute(f"DROP TABLE {name}".encode())

    async def entries(self, pool: AsyncConnectionPool, ledger: str) -> int:
        async with pool.connection() as connection:
            row = await (await connection.execute(f"SELECT count(*) FROM {ledger}".encode())).fetchone()
        return int(row[0])

    async def test_effect_and_record_are_committed_together(self, store, pool, key, ledger) -> None:
        granted = await claim(store, key)
        async with pool.connection() as connection, connection.transaction():
            await connection.execute(f"INSERT INTO {ledger} VALUES ('once')".encode())
            assert await store.complete_in(connection, granted, OUTCOME, retention=60.0)
            record = await store.get(key)
            assert record is not None
            assert record.outcome is None, "other connections see no outcome before the commit"
        record = await store.get(key)
        assert record is not None
        assert record.outcome == OUTCOME
        assert await self.entries(pool, ledger) == 1

    async def test_effect_and_record_are_rolled_back_together(self, store, pool, key, ledger) -> None:
        granted = await claim(store, key)
        async with pool.connection() as connection, connection.transaction(force_rollback=True):
            await connection.execute(f"INSERT INTO {ledger} VALUES ('once')".encode())
            assert await store.complete_in(connection, granted, OUTCOME, retention=60.0)
        record = await store.get(key)
        assert record is not None
        assert record.outcome is None
        assert await self.entries(pool, ledger) == 0

    async def test_complete_in_returns_false_for_a_claim_that_was_taken_over(self, store, pool, key) -> None:
        lost = await claim(store, key, lease=0.01)
        await until_lapsed(store, key)
        await claim(store, key)
        async with pool.connection() as connection, connection.transaction():
            assert not await store.complete_in(connection, lost, OUTCOME, retention=60.0)

    async def test_an_acquire_waits_for_the_transaction_of_complete_in_and_then_replays(
        self, store, pool, key
    ) -> None:
        """The late owner's transaction holds the row until it ends."""
        granted = await claim(store, key, lease=0.01)
        await until_lapsed(store, key)
        async with pool.connection() as connection, connection.transaction():
            assert await store.complete_in(connection, granted, OUTCOME, retention=60.0)
            successor = asyncio.create_task(
                store.acquire(key, fingerprint=FINGERPRINT, owner=new_owner(), lease=30.0, retention=60.0)
            )
            done, _ = await asyncio.wait({successor}, timeout=0.2)
            assert not done
        assert isinstance(await successor, Completed)

    async def test_complete_in_without_a_transaction_is_refused(self, store, pool, key) -> None:
        granted = await claim(store, key)
        async with pool.connection() as connection:
            await connection.set_autocommit(True)
            with pytest.raises(ValueError, match="transaction"):
                await store.complete_in(connection, granted, OUTCOME, retention=60.0)
            await connection.set_autocommit(False)

    def test_sync_complete_in_records_the_outcome_in_the_callers_transaction(
        self, postgres_url: str, key
    ) -> None:
        with ConnectionPool(postgres_url, min_size=1, max_size=2, open=False) as pool:
            store = SyncPostgresStore(pool, deadline=PATIENCE)
            reply = store.acquire(key, fingerprint=FINGERPRINT, owner=new_owner(), lease=30.0, retention=60.0)
            assert isinstance(reply, Acquired)
            with pool.connection() as connection, connection.transaction():
                assert store.complete_in(connection, reply.claim, OUTCOME, retention=60.0)
            assert isinstance(
                store.acquire(key, fingerprint=FINGERPRINT, owner=new_owner(), lease=9.0, retention=9.0),
                Completed,
            )
            store.close()


class TestRaces:
    async def test_eight_tasks_racing_for_a_hundred_keys_run_each_once(self, store: PostgresStore) -> None:
        runs: dict[StorageKey, int] = {}
        keys = [StorageKey(f"race-{secrets.token_hex(6)}") for _ in range(100)]

        async def task() -> None:
            for key in keys:
                while True:
                    reply = await store.acquire(
                        key, fingerprint=FINGERPRINT, owner=new_owner(), lease=30.0, retention=60.0
                    )
                    if isinstance(reply, Completed):
                        break
                    if isinstance(reply, Running):
                        continue
                    runs[key] = runs.get(key, 0) + 1
                    assert await store.complete(reply.claim, OUTCOME, retention=60.0)

        await asyncio.gather(*(task() for _ in range(8)))
        assert runs == dict.fromkeys(keys, 1)

    async def test_fences_rise_in_the_order_of_the_grants(self, store: PostgresStore) -> None:
        """Ten tasks with leases of a few milliseconds cause takeovers, releases and expiries."""
        key = StorageKey(f"fence-{secrets.token_hex(6)}")
        grants: list[tuple[float, float, int]] = []

        async def contender(number: int) -> None:
            for turn in range(40):
                started = time.monotonic()
                reply = await store.acquire(
                    key, fingerprint=FINGERPRINT, owner=new_owner(), lease=0.002, retention=0.003
                )
                if isinstance(reply, Acquired):
                    grants.append((started, time.monotonic(), reply.claim.fence))
                    if (number + turn) % 3 == 0:
                        await store.release(reply.claim)

        await asyncio.gather(*(contender(number) for number in range(10)))
        assert len(grants) > 40
        assert len({fence for *_, fence in grants}) == len(grants)
        for _, answered, fence in grants:
            later = [other for started, _, other in grants if started > answered]
            assert all(other > fence for other in later)


class TestLocksAndClocks:
    async def test_a_completion_that_waited_for_a_lock_counts_from_when_it_was_granted(
        self, store, pool, key
    ) -> None:
        granted = await claim(store, key)
        async with pool.connection() as connection:
            await connection.execute("SELECT 1 FROM idempotency_record WHERE key = %s FOR UPDATE", [key])
            completing = asyncio.create_task(store.complete(granted, OUTCOME, retention=60.0))
            await until(lambda: scalar(connection, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))
            freed = await scalar(connection, "SELECT clock_timestamp()")
        assert await completing
        async with pool.connection() as connection:
            completed_at = f"SELECT completed_at FROM idempotency_record WHERE key = '{key}'"
            assert await scalar(connection, completed_at) >= freed

    async def test_a_call_that_waits_for_a_lock_gives_up_at_its_deadline(self, pool, key) -> None:
        patient, store = PostgresStore(pool, deadline=PATIENCE), PostgresStore(pool, deadline=0.2)
        granted = await claim(patient, key)
        async with pool.connection() as connection:
            await connection.execute("SELECT 1 FROM idempotency_record WHERE key = %s FOR UPDATE", [key])
            started = time.monotonic()
            with pytest.raises(StoreUnavailable, match="may be repeated"):
                await store.complete(granted, OUTCOME, retention=60.0)
            assert time.monotonic() - started < PATIENCE
        assert await patient.complete(granted, OUTCOME, retention=60.0)
        await store.aclose()
        await patient.aclose()

    def test_a_sync_call_that_waits_for_a_lock_gives_up_at_its_deadline(self, postgres_url: str, key) -> None:
        with ConnectionPool(postgres_url, min_size=2, max_size=3, open=False) as pool:
            patient, store = SyncPostgresStore(pool, deadline=PATIENCE), SyncPostgresStore(pool, deadline=0.2)
            reply = patient.acquire(
                key, fingerprint=FINGERPRINT, owner=new_owner(), lease=30.0, retention=60.0
            )
            assert isinstance(reply, Acquired)
            with pool.connection() as connection:
                connection.execute("SELECT 1 FROM idempotency_record WHERE key = %s FOR UPDATE", [key])
                started = time.monotonic()
                with pytest.raises(StoreUnavailable, match="may be repeated"):
                    store.complete(reply.claim, OUTCOME, retention=60.0)
                assert time.monotonic() - started < PATIENCE
            store.close()
            patient.close()

    async def test_a_repeated_acquire_with_a_shorter_lease_and_retention_shortens_neither(
        self, store, key
    ) -> None:
        granted = await claim(store, key)
        reply = await store.acquire(
            key, fingerprint=FINGERPRINT, owner=granted.owner, lease=1.0, retention=1.0
        )
        record = await store.get(key)
        assert reply == Acquired(granted)
        assert record is not None
        assert record.lease_left > 25
        assert record.expires_in > 85

    async def test_a_replay_does_not_wait_for_a_row_lock(self, store, pool, key) -> None:
        granted = await claim(store, key)
        await store.complete(granted, OUTCOME, retention=60.0)
        async with pool.connection() as connection:
            await connection.execute("SELECT 1 FROM idempotency_record WHERE key = %s FOR UPDATE", [key])
            reply = await store.acquire(
                key, fingerprint=FINGERPRINT, owner=new_owner(), lease=30.0, retention=60.0
            )
        assert isinstance(reply, Completed)


class TestLostConnections:
    async def test_connections_that_the_server_terminated_are_replaced(
        self, store, pool, postgres_url: str, key
    ) -> None:
        granted = await claim(store, key)
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        assert await store.complete(granted, OUTCOME, retention=60.0)

    async def test_an_unreachable_server_raises_store_unavailable_in_time(self, key) -> None:
        async with AsyncConnectionPool("host=127.0.0.1 port=1", min_size=0, max_size=1, open=False) as pool:
            store = PostgresStore(pool, deadline=0.3)
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.get(key)
            assert time.monotonic() - started < PATIENCE
            await store.aclose()

    async def test_the_pool_works_after_calls_are_cancelled(self, store, pool) -> None:
        for turn in range(20):
            cancelled = [
                asyncio.create_task(claim(store, StorageKey(f"cancelled-{secrets.token_hex(6)}")))
                for _ in range(3)
            ]
            for _ in range(turn):
                await asyncio.sleep(0)
            for task in cancelled:
                task.cancel()
            await asyncio.gather(*cancelled, return_exceptions=True)
            key = StorageKey(f"alive-{secrets.token_hex(6)}")
            granted = await claim(store, key)
            assert await store.complete(granted, OUTCOME, retention=60.0)


class TestSchema:
    async def test_create_schema_may_run_concurrently(self, pool) -> None:
        table = f"t_{secrets.token_hex(6)}"
        stores = [PostgresStore(pool, table=table, deadline=PATIENCE) for _ in range(8)]
        await asyncio.gather(*(store.create_schema() for store in stores))
        await claim(stores[0], StorageKey("k"))
        async with pool.connection() as connection:
            await connection.execute(f"DROP TABLE {table}; DROP SEQUENCE {table}_fence".encode())

    async def test_the_error_for_a_missing_table_names_create_schema(self, pool, key) -> None:
        store = PostgresStore(pool, table="nowhere", deadline=PATIENCE)
        with pytest.raises(StoreUnavailable, match="create_schema"):
            await store.get(key)

    @pytest.mark.parametrize("table", ["", "Upper", "a b", "a;b", 'a"b', "a.b.c", "1a"])
    def test_a_table_name_that_is_not_plain_lower_case_is_refused(self, table: str) -> None:
        with pytest.raises(ValueError, match="plain lower-case name"):
            schema_sql(table)

    def test_a_table_name_may_have_a_schema(self) -> None:
        assert 'CREATE TABLE IF NOT EXISTS "app"."records"' in schema_sql("app.records")

    async def test_a_store_works_with_a_pools_row_factory_and_autocommit_setting(
        self, postgres_url: str, key
    ) -> None:
        """Rows as dicts, no prepared statements (as for PgBouncer), autocommit on and off."""
        for autocommit in (False, True):
            kwargs = {"row_factory": dict_row, "prepare_threshold": None, "autocommit": autocommit}
            async with AsyncConnectionPool(
                postgres_url, min_size=1, max_size=1, open=False, kwargs=kwargs
            ) as pool:
                store = PostgresStore(pool, deadline=PATIENCE)
                name = StorageKey(f"{key}-{autocommit}")
                for _ in range(8):
                    granted = await claim(store, name)
                    assert await store.release(granted)
                async with pool.connection() as connection:
                    assert connection.autocommit is autocommit


class TestHousekeeping:
    async def test_a_purge_deletes_only_expired_records(self, own_table: PostgresStore) -> None:
        assert isinstance(own_table, Purgeable)
        for number in range(7):
            await claim(own_table, StorageKey(f"old-{number}"), lease=0.001, retention=0.001)
        granted = await claim(own_table, StorageKey("young"))
        await until_forgotten(own_table, *(StorageKey(f"old-{number}") for number in range(7)))
        assert await own_table.purge(limit=5) == 5
        assert await own_table.purge(limit=5) == 2
        assert await own_table.renew(granted, lease=30.0)

    async def test_concurrent_purges_count_each_record_once(self, own_table: PostgresStore) -> None:
        for number in range(20):
            await claim(own_table, StorageKey(f"old-{number}"), lease=0.001, retention=0.001)
        await until_forgotten(own_table, *(StorageKey(f"old-{number}") for number in range(20)))
        purged = await asyncio.gather(*(own_table.purge(limit=10) for _ in range(6)))
        assert sum(purged) == 20

    async def test_a_completion_deletes_two_expired_records(self, own_table: PostgresStore) -> None:
        for number in range(5):
            await claim(own_table, StorageKey(f"old-{number}"), lease=0.001, retention=0.001)
        granted = await claim(own_table, StorageKey("young"))
        await until_forgotten(own_table, *(StorageKey(f"old-{number}") for number in range(5)))
        await own_table.complete(granted, OUTCOME, retention=60.0)
        assert await own_table.purge() == 3

    async def test_a_scan_lists_live_records_in_key_order(self, own_table: PostgresStore) -> None:
        assert isinstance(own_table, Inspectable)
        keys = [StorageKey(f"k{number:02}") for number in range(25)]
        await asyncio.gather(*(claim(own_table, key) for key in keys))
        await claim(own_table, StorageKey("k99"), lease=0.001, retention=0.001)
        await until_forgotten(own_table, StorageKey("k99"))
        seen, cursor, first = [], None, True
        while first or cursor is not None:
            page = await own_table.scan(limit=10, cursor=cursor)
            seen += [record.key for record in page.records]
            cursor, first = page.cursor, False
        assert seen == keys

    @pytest.mark.parametrize("completed", [False, True])
    async def test_forgetting_a_running_or_completed_record_frees_its_key(
        self, store, key, completed: bool
    ) -> None:
        granted = await claim(store, key)
        if completed:
            await store.complete(granted, OUTCOME, retention=60.0)
        assert await store.forget(key) is True
        assert await store.forget(key) is False
        assert (await claim(store, key)).fence > granted.fence

    def test_the_sync_store_can_scan_forget_and_purge(self, postgres_url: str, key) -> None:
        with ConnectionPool(postgres_url, min_size=1, max_size=2, open=False) as pool:
            store = SyncPostgresStore(pool, deadline=PATIENCE)
            store.create_schema()
            assert isinstance(store, SyncInspectable)
            assert isinstance(store, SyncPurgeable)
            store.acquire(key, fingerprint=FINGERPRINT, owner=new_owner(), lease=9.0, retention=9.0)
            assert store.scan(limit=1, cursor=key[:-1]).records[0].key == key
            assert store.forget(key) is True
            assert store.purge(limit=0) == 0
            store.close()


@pytest.mark.parametrize(
    "outcome", [b"{}", b'{"a":"\\u0000"}', b'{"raw":"\xff\x00"}', b"{" + b" " * 100_000 + b"}"]
)
async def test_any_outcome_comes_back_byte_for_byte(store, key, outcome: bytes) -> None:
    granted = await claim(store, key)
    assert await store.complete(granted, outcome, retention=60.0)
    record = await store.get(key)
    assert record is not None
    assert (record.outcome, record.fingerprint, record.owner) == (outcome, FINGERPRINT, granted.owner)


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("inf")])
async def test_an_invalid_deadline_is_refused(pool: AsyncConnectionPool, deadline: float) -> None:
    with pytest.raises(ValueError, match="deadline"):
        PostgresStore(pool, deadline=deadline)


async def test_an_empty_outcome_is_refused(store, key) -> None:
    granted = await claim(store, key)
    with pytest.raises(ValueError, match="empty"):
        await store.complete(granted, b"", retention=60.0)
