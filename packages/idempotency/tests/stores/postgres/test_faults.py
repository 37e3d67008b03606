"""The PostgreSQL store when replies are lost, transactions conflict, or an administrator ends its connections."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
import pytest
from breaking_proxy import Break, BreakingProxy
from patience import PATIENCE, until
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, Running, StorageKey
from idempotency._core.types import Reply
from idempotency.errors import IsolationConflict, StoreUnavailable
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore

pytestmark = pytest.mark.anyio

T = TypeVar("T")
FINGERPRINT = Fingerprint(b"f" * 32)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"faults-{secrets.token_hex(8)}")


async def acquire(store: PostgresStore, key: StorageKey, owner: Owner | None = None) -> Reply:
    owner = owner or Owner(secrets.token_bytes(16))
    return await store.acquire(key, fingerprint=FINGERPRINT, owner=owner, lease=30.0, retention=60.0)


async def granted(store: PostgresStore, key: StorageKey) -> Claim:
    reply = await acquire(store, key)
    assert isinstance(reply, Acquired)
    return reply.claim


class TestLostReplies:
    """The connection breaks after a statement took effect and before its reply, or before the statement arrived."""

    @pytest.fixture
    async def store(self, postgres_line: tuple[BreakingProxy, str]) -> AsyncIterator[PostgresStore]:
        async with AsyncConnectionPool(postgres_line[1], min_size=1, max_size=1, open=False) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            await pool.wait()
            yield store
            await store.aclose()

    async def test_an_acquire_whose_reply_was_lost_is_repeated_and_gets_the_same_claim(
        self, store, postgres_line, key
    ) -> None:
        postgres_line[0].faults = iter([Break.AFTER])
        reply = await acquire(store, key)
        assert isinstance(reply, Acquired)
        assert reply.claim.attempt == 1
        assert postgres_line[0].breaks == {Break.AFTER: 1}

    async def test_a_complete_whose_reply_was_lost_is_repeated_and_returns_true(
        self, store, postgres_line, key
    ) -> None:
        claim = await granted(store, key)
        postgres_line[0].faults = iter([Break.AFTER])
        assert await store.complete(claim, b"{}", retention=60.0) is True

    async def test_a_release_whose_reply_was_lost_raises_store_unavailable_and_a_second_one_returns_false(
        self, store, postgres_line, key
    ) -> None:
        claim = await granted(store, key)
        postgres_line[0].faults = iter([Break.AFTER])
        with pytest.raises(StoreUnavailable, match="may or may not"):
            await store.release(claim)
        assert await store.release(claim) is False
        assert await store.get(key) is None

    async def test_a_release_whose_request_was_lost_is_repeated(self, store, postgres_line, key) -> None:
        claim = await granted(store, key)
        postgres_line[0].faults = iter([Break.BEFORE])
        assert await store.release(claim) is True

    def test_a_sync_release_whose_reply_was_lost_raises_store_unavailable(
        self, postgres_url: str, key
    ) -> None:
        with ConnectionPool(postgres_url, min_size=1, max_size=1, open=False) as pool:
            store = SyncPostgresStore(pool, deadline=PATIENCE)
            arguments: dict[str, Any] = {"fingerprint": FINGERPRINT, "lease": 30.0, "retention": 60.0}
            reply = store.acquire(key, owner=Owner(b"o" * 16), **arguments)
            assert isinstance(reply, Acquired)
            execute_once, lost = store._execute_once, [True]

            def execute_and_lose_the_reply(statement: str, values: Any) -> Any:
                rows = execute_once(statement, values)
                if lost and lost.pop():
                    raise psycopg.OperationalError("the connection was lost")
                return rows

            store._execute_once = execute_and_lose_the_reply  # type: ignore[method-assign]
            with pytest.raises(StoreUnavailable, match="may or may not"):
                store.release(reply.claim)
            assert store.release(reply.claim) is False
            store.close()

    @pytest.mark.parametrize("lost", Break)
    async def test_after_a_lost_commit_effect_and_record_agree(
        self, lost: Break, store, postgres_line, postgres_url: str, key
    ) -> None:
        claim = await granted(store, key)
        table = f"effect_{secrets.token_hex(6)}"
        async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
            await admin.execute(f"CREATE TABLE {table} (x int)".encode())
            connection = await psycopg.AsyncConnection.connect(postgres_line[1])
            backend = connection.info.backend_pid
            await connection.execute(f"INSERT INTO {table} VALUES (1)".encode())
            assert await store.complete_in(connection, claim, b"{}", retention=60.0)
            postgres_line[0].faults = iter([lost])
            with pytest.raises(psycopg.OperationalError):
                await connection.commit()
            await connection.close()
            # A backend that lost its connection commits what has arrived, rolls back the rest, and exits.
            gone = f"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {backend}"
            await until(lambda: scalar(admin, gone))
            reply, effects = await acquire(store, key), await scalar(admin, f"SELECT count(*) FROM {table}")
            assert (type(reply), effects) == ((Completed, 1) if lost is Break.AFTER else (Running, 0))
            await admin.execute(f"DROP TABLE {table}".encode())


async def scalar(connection: psycopg.AsyncConnection[Any], query: str) -> Any:
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


class TestOtherTransactions:
    @pytest.mark.parametrize("level", ["repeatable read", "serializable"])
    async def test_each_key_is_granted_once_above_read_committed(
        self, level: str, postgres_url: str, key
    ) -> None:
        """A serialization failure had no effect and is retried; a caller that gets one retries the call."""
        runs: list[StorageKey] = []

        async def retry_serialization_failures(call: Callable[[], Awaitable[T]]) -> T:
            while True:
                try:
                    return await call()
                except StoreUnavailable as error:
                    if "40001" not in str(error):
                        raise

        async def worker(store: PostgresStore) -> None:
            for name in keys:
                while not isinstance(
                    reply := await retry_serialization_failures(lambda name=name: acquire(store, name)),
                    Completed,
                ):
                    if isinstance(reply, Running):
                        continue
                    runs.append(name)
                    claim = reply.claim
                    assert await retry_serialization_failures(
                        lambda claim=claim: store.complete(claim, b"{}", retention=60.0)
                    )

        keys = [StorageKey(f"{key}-{number}") for number in range(15)]
        options = f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
        async with AsyncConnectionPool(
            postgres_url, max_size=6, open=False, kwargs={"options": options}
        ) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            await asyncio.gather(*(worker(store) for _ in range(6)))
            await store.aclose()
        assert sorted(runs) == sorted(keys)

    async def test_complete_in_raises_isolation_conflict_for_a_claim_made_after_the_snapshot(
        self, postgres_url: str, key
    ) -> None:
        async with AsyncConnectionPool(postgres_url, min_size=2, max_size=2, open=False) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            async with pool.connection() as connection:
                await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
                await connection.execute("SELECT 1 FROM idempotency_record LIMIT 1")
                claim = await granted(store, key)
                with pytest.raises(IsolationConflict):
                    await store.complete_in(connection, claim, b"{}", retention=60.0)
                await connection.rollback()
                assert await store.complete_in(connection, claim, b"{}", retention=60.0) is True
                await connection.commit()
                await connection.set_isolation_level(None)
            assert isinstance(await acquire(store, key), Completed)
            await store.aclose()

    async def test_a_call_is_retried_after_deadlocks(self, postgres_url: str, key) -> None:
        async with AsyncConnectionPool(postgres_url, min_size=2, max_size=2, open=False) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            execute_once, fail = (
                store._execute_once,
                [psycopg.errors.DeadlockDetected(), psycopg.errors.DeadlockDetected()],
            )

            async def deadlock_twice(statement: str, values: Any) -> Any:
                if fail:
                    raise fail.pop()
                return await execute_once(statement, values)

            store._execute_once = deadlock_twice  # type: ignore[method-assign]
            assert isinstance(await acquire(store, key), Acquired)
            await store.aclose()

    async def test_a_call_whose_connection_an_administrator_terminates_is_repeated(
        self, postgres_url: str, key
    ) -> None:
        async with (
            await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin,
            AsyncConnectionPool(postgres_url, min_size=2, max_size=2, open=False) as pool,
        ):
            store = PostgresStore(pool, deadline=PATIENCE)
            claim = await granted(store, key)
            async with pool.connection() as other, other.transaction():
                await other.execute("SELECT FROM idempotency_record WHERE key = %s FOR UPDATE", [key])
                completing = asyncio.create_task(store.complete(claim, b"{}", retention=60.0))
                ended = 0
                async with asyncio.timeout(30):
                    while not ended:
                        ended = await scalar(
                            admin,
                            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                            "WHERE wait_event_type = 'Lock'",
                        )
            assert await completing is True
            await store.aclose()


def test_stores_in_two_consecutive_event_loops_see_the_same_claim(postgres_url: str, key) -> None:

    async def use() -> Reply:
        async with AsyncConnectionPool(postgres_url, min_size=1, max_size=2, open=False) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            reply = await acquire(store, key, Owner(b"o" * 16))
            await store.aclose()
            return reply

    assert asyncio.run(use()) == asyncio.run(use())


def test_thirty_two_threads_racing_for_ten_keys_are_granted_each_once(postgres_url: str, key) -> None:
    with ConnectionPool(postgres_url, min_size=4, max_size=8, open=False) as pool:
        store = SyncPostgresStore(pool, deadline=PATIENCE)

        def work(thread: int) -> int:
            owner, won = Owner(bytes([thread]) * 16), 0
            for number in range(10):
                arguments: dict[str, Any] = {"fingerprint": FINGERPRINT, "lease": 30.0, "retention": 60.0}
                won += isinstance(
                    store.acquire(StorageKey(f"{key}-{number}"), owner=owner, **arguments), Acquired
                )
            return won

        with ThreadPoolExecutor(32) as threads:
            assert sum(threads.map(work, range(32))) == 10
        store.close()


async def test_closed_stores_raise_store_unavailable(postgres_url: str, key) -> None:
    """As other stores do: a late release of the engine may come after the end."""
    async with AsyncConnectionPool(postgres_url, min_size=1, open=False) as pool:
        store = PostgresStore(pool, deadline=PATIENCE)
        assert await store.get(key) is None
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.get(key)
    with ConnectionPool(postgres_url, min_size=1, open=True) as sync_pool:
        sync_store = SyncPostgresStore(sync_pool, deadline=PATIENCE)
        assert sync_store.get(key) is None
        sync_store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            sync_store.get(key)


async def test_a_lock_timeout_is_not_taken_for_a_lost_connection(
    postgres_url: str, key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has answered, and nothing has taken effect."""
    settings = {"options": "-c lock_timeout=20"}  # ms
    async with AsyncConnectionPool(postgres_url, min_size=1, open=False, kwargs=settings) as pool:
        monkeypatch.setattr(pool, "check", None)  # called after a lost connection
        store = PostgresStore(pool, deadline=PATIENCE)
        claim = await granted(store, key)
        with psycopg.connect(postgres_url) as holder:
            holder.execute("SELECT 1 FROM idempotency_record WHERE key = %s FOR UPDATE", (key,))
            with pytest.raises(StoreUnavailable, match="lock_timeout"):
                await store.renew(claim, lease=30.0)
        assert await store.renew(claim, lease=30.0)
