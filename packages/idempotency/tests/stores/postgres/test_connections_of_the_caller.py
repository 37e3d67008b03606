"""`complete_in` and the store's own calls on connections with any cursors, row factories and adapters."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from patience import PATIENCE
from psycopg.adapt import Loader
from psycopg.rows import class_row, dict_row, namedtuple_row, scalar_row, tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency import Acquired, Completed, Fingerprint, Owner, State, StorageKey
from idempotency.errors import StoreError, StoreUnavailable
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore

pytestmark = pytest.mark.anyio

FINGERPRINT = Fingerprint(b"\x00\xff" * 16)
OUTCOME = b'{"n":1}'


@dataclass
class UnusableRow:
    """A row class that fits none of the store's columns."""

    nothing_of_the_kind: int


class DecimalLoader(Loader):
    """Loads numbers as decimals, as some applications do."""

    def load(self, data: Any) -> Decimal:
        return Decimal(bytes(data).decode())


CURSORS: dict[str, tuple[type[Any], type[Any]]] = {
    "plain": (psycopg.Cursor, psycopg.AsyncCursor),
    "client": (psycopg.ClientCursor, psycopg.AsyncClientCursor),
    "raw": (psycopg.RawCursor, psycopg.AsyncRawCursor),
    "raw-server": (psycopg.Cursor, psycopg.AsyncCursor),
}
ROWS: dict[str, Any] = {
    "tuple": tuple_row,
    "dict": dict_row,
    "namedtuple": namedtuple_row,
    "scalar": scalar_row,
    "class": class_row(UnusableRow),
}
CONFIGURATIONS = [
    *((cursor, "tuple") for cursor in CURSORS),
    *(("plain", rows) for rows in ROWS if rows != "tuple"),
    ("client", "dict"),
    ("raw", "class"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"caller-{secrets.token_hex(8)}")


@pytest.fixture(params=CONFIGURATIONS, ids="-".join)
def configuration(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


def owner() -> Owner:
    return Owner(secrets.token_bytes(16))


ACQUIRE: dict[str, Any] = {"fingerprint": FINGERPRINT, "lease": 30.0, "retention": 60.0}


class TestPools:
    """The store's own calls over a configured pool."""

    async def test_every_call_of_the_async_store_works(
        self, postgres_url: str, key: StorageKey, configuration: tuple[str, str]
    ) -> None:
        kwargs = {"cursor_factory": CURSORS[configuration[0]][1], "row_factory": ROWS[configuration[1]]}
        async with AsyncConnectionPool(
            postgres_url, min_size=1, max_size=2, open=False, kwargs=kwargs
        ) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            await store.create_schema()
            granted = await store.acquire(key, owner=owner(), **ACQUIRE)
            assert isinstance(granted, Acquired)
            assert await store.renew(granted.claim, lease=30.0)
            assert (await store.get(key)).state is State.RUNNING
            async with pool.connection() as connection, connection.transaction():
                assert await store.complete_in(connection, granted.claim, OUTCOME, retention=60.0)
            replayed = await store.acquire(key, owner=owner(), **ACQUIRE)
            assert isinstance(replayed, Completed)
            assert replayed.outcome == OUTCOME
            assert key in [record.key for record in (await store.scan(limit=1, cursor=key[:-1])).records]
            assert await store.purge(limit=0) == 0
            assert await store.forget(key)
            granted = await store.acquire(key, owner=owner(), **ACQUIRE)
            assert await store.release(granted.claim)
            await store.aclose()

    def test_every_call_of_the_sync_store_works(
        self, postgres_url: str, key: StorageKey, configuration: tuple[str, str]
    ) -> None:
        kwargs = {"cursor_factory": CURSORS[configuration[0]][0], "row_factory": ROWS[configuration[1]]}
        with ConnectionPool(postgres_url, min_size=1, max_size=2, open=False, kwargs=kwargs) as pool:
            store = SyncPostgresStore(pool, deadline=PATIENCE)
            store.create_schema()
            granted = store.acquire(key, owner=owner(), **ACQUIRE)
            assert isinstance(granted, Acquired)
            assert store.renew(granted.claim, lease=30.0)
            assert store.get(key).state is State.RUNNING
            with pool.connection() as connection, connection.transaction():
                assert store.complete_in(connection, granted.claim, OUTCOME, retention=60.0)
            replayed = store.acquire(key, owner=owner(), **ACQUIRE)
            assert isinstance(replayed, Completed)
            assert replayed.outcome == OUTCOME
            assert key in [record.key for record in store.scan(limit=1, cursor=key[:-1]).records]
            assert store.purge(limit=0) == 0
            assert store.forget(key)
            granted = store.acquire(key, owner=owner(), **ACQUIRE)
            assert store.release(granted.claim)
            store.close()


class TestSettings:
    @pytest.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[PostgresStore]:
        async with AsyncConnectionPool(postgres_url, min_size=1, max_size=2, open=False) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            yield store
            await store.aclose()

    @pytest.mark.parametrize("threshold", [0, 1, None])
    async def test_complete_in_works_with_and_without_prepared_statements(
        self, postgres_url: str, store: PostgresStore, threshold: int | None, key: StorageKey
    ) -> None:
        async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
            connection.prepare_threshold = threshold
            for number in range(7):
                granted = await store.acquire(StorageKey(f"{key}-{number}"), owner=owner(), **ACQUIRE)
                async with connection.transaction():
                    assert await store.complete_in(connection, granted.claim, OUTCOME, retention=60.0)

    async def test_loaders_of_the_connection_do_not_change_the_types_of_the_replies(
        self, postgres_url: str, key: StorageKey
    ) -> None:
        async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
            for name in ("float8", "int4", "int8"):
                connection.adapters.register_loader(name, DecimalLoader)

        async with AsyncConnectionPool(
            postgres_url, min_size=1, max_size=2, open=False, configure=configure
        ) as pool:
            store = PostgresStore(pool, deadline=PATIENCE)
            granted = await store.acquire(key, owner=owner(), **ACQUIRE)
            assert isinstance(granted, Acquired)
            assert (type(granted.claim.attempt), type(granted.claim.fence)) == (int, int)
            record = await store.get(key)
            assert type(record.expires_in) is type(record.lease_left) is float
            await store.complete(granted.claim, OUTCOME, retention=60.0)
            replayed = await store.acquire(key, owner=owner(), **ACQUIRE)
            assert type(replayed.age) is type(replayed.expires_in) is float
            assert await store.purge(limit=0) == 0
            await store.aclose()

    async def test_complete_in_works_in_a_pipeline(
        self, postgres_url: str, store: PostgresStore, key: StorageKey
    ) -> None:
        granted = await store.acquire(key, owner=owner(), **ACQUIRE)
        async with (
            await psycopg.AsyncConnection.connect(postgres_url) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute("SELECT 1")
            assert await store.complete_in(connection, granted.claim, OUTCOME, retention=60.0)
        assert isinstance(await store.acquire(key, owner=owner(), **ACQUIRE), Completed)


class TestPermanentErrors:
    """A failure that repeating cannot solve is not reported as transient."""

    @pytest.fixture
    def store(self, postgres_url: str) -> Iterator[SyncPostgresStore]:
        with ConnectionPool(postgres_url, min_size=1, max_size=2, open=False) as pool:
            store = SyncPostgresStore(pool, deadline=PATIENCE)
            yield store
            store.close()

    @pytest.mark.parametrize(
        "error",
        [
            psycopg.NotSupportedError("binary results"),
            psycopg.ProgrammingError("no results"),
            psycopg.DataError("cannot adapt"),
            psycopg.errors.UndefinedColumn("fence"),
            psycopg.errors.UndefinedFunction("make_interval"),
            psycopg.errors.CheckViolation("of a trigger"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_permanent_error_raises_a_store_error_that_says_so(
        self, store: SyncPostgresStore, monkeypatch: pytest.MonkeyPatch, error: Exception, key: StorageKey
    ) -> None:
        def refused(*_: object) -> Any:
            raise error

        monkeypatch.setattr(store, "_execute_once", refused)
        with pytest.raises(StoreError, match="will not help") as caught:
            store.get(key)
        assert not isinstance(caught.value, StoreUnavailable)
        assert "may be repeated" not in str(caught.value)

    def test_a_table_with_other_columns_raises_a_permanent_store_error(
        self, store: SyncPostgresStore, postgres_url: str
    ) -> None:
        table = f"t_{secrets.token_hex(6)}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"CREATE TABLE {table} (key text)".encode())
            with ConnectionPool(postgres_url, min_size=1, max_size=1, open=False) as pool:
                store = SyncPostgresStore(pool, table=table, deadline=PATIENCE)
                with pytest.raises(StoreError) as caught:
                    store.get(StorageKey("k"))
                store.close()
            connection.execute(f"DROP TABLE {table}".encode())
        assert not isinstance(caught.value, StoreUnavailable)
