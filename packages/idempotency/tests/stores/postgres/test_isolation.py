"""`complete_in` in transactions above READ COMMITTED, whose snapshot may be older than the claim's record."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from patience import PATIENCE, until_lapsed
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, StorageKey
from idempotency.errors import IsolationConflict, StoreUnavailable
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore

pytestmark = pytest.mark.anyio

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
OUTCOME = b'{"n":1}'
LEVELS = [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"isolation-{secrets.token_hex(8)}")


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    async with AsyncConnectionPool(postgres_url, min_size=1, max_size=4, open=False) as pool:
        store = PostgresStore(pool, deadline=PATIENCE)
        yield store
        await store.aclose()


@pytest.fixture(params=LEVELS, ids=lambda level: level.name.lower())
async def connection(
    request: pytest.FixtureRequest, postgres_url: str
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection with an isolation level above READ COMMITTED."""
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.set_isolation_level(request.param)
        yield connection
        await connection.rollback()


async def claim(store: PostgresStore, key: StorageKey, *, lease: float = 30.0) -> Claim:
    reply = await store.acquire(key, owner=Owner(secrets.token_bytes(16)), **ACQUIRE | {"lease": lease})
    assert isinstance(reply, Acquired)
    return reply.claim


async def take_snapshot(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("SELECT count(*) FROM idempotency_record")


async def test_complete_in_succeeds_where_the_snapshot_has_the_current_claim(store, connection, key) -> None:
    granted = await claim(store, key)
    await take_snapshot(connection)
    assert await store.complete_in(connection, granted, OUTCOME, retention=60.0) is True
    await connection.commit()
    assert isinstance(await store.acquire(key, owner=Owner(b"x" * 16), **ACQUIRE), Completed)


async def test_a_renewal_after_the_snapshot_raises_isolation_conflict_with_advice(
    store, connection, key
) -> None:
    granted = await claim(store, key)
    await take_snapshot(connection)
    assert await store.renew(granted, lease=30.0)
    with pytest.raises(IsolationConflict, match=r"REPEATABLE READ.*READ COMMITTED") as caught:
        await store.complete_in(connection, granted, OUTCOME, retention=60.0)
    assert not isinstance(caught.value, StoreUnavailable)


async def test_a_claim_made_after_the_snapshot_raises_isolation_conflict_and_does_not_count_as_lost(
    store, connection, key
) -> None:
    await take_snapshot(connection)
    granted = await claim(store, key)
    with pytest.raises(IsolationConflict, match="READ COMMITTED"):
        await store.complete_in(connection, granted, OUTCOME, retention=60.0)
    await connection.rollback()
    assert await store.complete_in(connection, granted, OUTCOME, retention=60.0) is True


async def test_a_takeover_by_this_run_after_the_snapshot_raises_isolation_conflict(
    store, connection, key
) -> None:
    await claim(store, key, lease=0.01)
    await take_snapshot(connection)
    await until_lapsed(store, key)
    granted = await claim(store, key)
    assert granted.attempt == 2
    with pytest.raises(IsolationConflict):
        await store.complete_in(connection, granted, OUTCOME, retention=60.0)


async def test_complete_in_returns_false_for_a_claim_taken_over_before_the_snapshot(
    store, connection, key
) -> None:
    lost = await claim(store, key, lease=0.01)
    await until_lapsed(store, key)
    await claim(store, key)
    await take_snapshot(connection)
    assert await store.complete_in(connection, lost, OUTCOME, retention=60.0) is False


async def test_a_takeover_by_another_run_after_the_snapshot_raises_isolation_conflict(
    store, connection, key
) -> None:
    lost = await claim(store, key, lease=0.01)
    await take_snapshot(connection)
    await until_lapsed(store, key)
    await claim(store, key)
    with pytest.raises(IsolationConflict):
        await store.complete_in(connection, lost, OUTCOME, retention=60.0)


async def test_complete_in_under_read_committed_succeeds_for_a_claim_made_after_the_first_statement(
    store, postgres_url: str, key
) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await take_snapshot(connection)
        granted = await claim(store, key)
        assert await store.renew(granted, lease=30.0)
        assert await store.complete_in(connection, granted, OUTCOME, retention=60.0) is True


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name.lower())
def test_a_sync_claim_or_renewal_after_the_snapshot_raises_isolation_conflict(
    postgres_url: str, key: StorageKey, level: psycopg.IsolationLevel
) -> None:
    with (
        ConnectionPool(postgres_url, min_size=1, max_size=2, open=False) as pool,
        psycopg.connect(postgres_url) as connection,
    ):
        store = SyncPostgresStore(pool, deadline=PATIENCE)
        connection.isolation_level = level
        connection.execute("SELECT count(*) FROM idempotency_record")
        reply = store.acquire(key, owner=Owner(b"o" * 16), **ACQUIRE)
        assert isinstance(reply, Acquired)
        with pytest.raises(IsolationConflict):
            store.complete_in(connection, reply.claim, OUTCOME, retention=60.0)
        connection.rollback()
        connection.execute("SELECT count(*) FROM idempotency_record")
        store.renew(reply.claim, lease=30.0)
        with pytest.raises(IsolationConflict):
            store.complete_in(connection, reply.claim, OUTCOME, retention=60.0)
        connection.rollback()
        assert store.complete_in(connection, reply.claim, OUTCOME, retention=60.0) is True
        connection.rollback()
        store.close()


class TestSavepoints:
    """A savepoint could roll the record back while the effect is committed, so that it is refused."""

    async def test_complete_in_inside_a_savepoint_is_refused(self, store, postgres_url: str, key) -> None:
        granted = await claim(store, key)
        async with (
            await psycopg.AsyncConnection.connect(postgres_url) as connection,
            connection.transaction(),
        ):
            with pytest.raises(ValueError, match="savepoint"):
                async with connection.transaction():
                    await store.complete_in(connection, granted, OUTCOME, retention=60.0)
            assert (await store.get(key)).outcome is None
            assert await store.complete_in(connection, granted, OUTCOME, retention=60.0) is True

    async def test_complete_in_after_a_released_savepoint_succeeds(
        self, store, postgres_url: str, key
    ) -> None:
        granted = await claim(store, key)
        async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
            await connection.execute("SAVEPOINT effect")
            await connection.execute("RELEASE SAVEPOINT effect")
            assert await store.complete_in(connection, granted, OUTCOME, retention=60.0) is True

    def test_a_sync_complete_in_inside_a_savepoint_is_refused(
        self, postgres_url: str, key: StorageKey
    ) -> None:
        with (
            ConnectionPool(postgres_url, min_size=1, max_size=2, open=False) as pool,
            psycopg.connect(postgres_url) as connection,
        ):
            store = SyncPostgresStore(pool, deadline=PATIENCE)
            reply = store.acquire(key, owner=Owner(b"o" * 16), **ACQUIRE)
            connection.execute("SAVEPOINT by_hand")
            with pytest.raises(ValueError, match="savepoint"):
                store.complete_in(connection, reply.claim, OUTCOME, retention=60.0)
            store.close()
