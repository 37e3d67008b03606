"""The store contract, and what else holds, over SQLAlchemy engines for PostgreSQL, MariaDB and SQLite."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from patience import PATIENCE, until_forgotten_sync, until_sync
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import create_async_engine

from idempotency import Acquired, Completed, Fingerprint, Owner, Running, StorageKey
from idempotency.errors import StoreError, StoreUnavailable
from idempotency.store import Inspectable, Purgeable, Store, SyncInspectable, SyncPurgeable, SyncStore
from idempotency.stores.postgres import SyncPostgresStore
from idempotency.stores.sqlalchemy import SQLAlchemyStore, SyncSQLAlchemyStore, schema_of
from idempotency.stores.sqlite import SyncSQLiteStore
from idempotency.testing import Clock, RealClock, StoreContract

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
SYNC = ["postgresql+psycopg", "mysql+pymysql", "sqlite+pysqlite"]
ASYNC = ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy", "sqlite+aiosqlite"]


def owner() -> Owner:
    return Owner(secrets.token_bytes(16))


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], sa.URL]:
    """The URL of a database that has the default table, for a dialect and driver."""

    def url(kind: str) -> sa.URL:
        if kind.startswith("sqlite"):
            return sa.make_url(f"{kind}:///{tmp_path}/records.db")
        if kind.startswith("mysql"):
            return sa.make_url(f"{kind}://{request.getfixturevalue('mariadb_server_url')}")
        given = conninfo_to_dict(request.getfixturevalue("postgres_url"))
        query = {"host": str(given["host"])}
        return sa.URL.create(kind, given.get("user"), database=given.get("dbname"), query=query)

    return url


@contextmanager
def opened(
    url: sa.URL, *, table: str = "idempotency_record", **options: Any
) -> Iterator[SyncSQLAlchemyStore]:
    engine = sa.create_engine(url, pool_size=10, **options)
    store = SyncSQLAlchemyStore(engine, table=table, owns_engine=True)
    store.create_schema()
    yield store
    store.close()


@asynccontextmanager
async def opened_async(url: sa.URL) -> AsyncIterator[SQLAlchemyStore]:
    store = SQLAlchemyStore(create_async_engine(url, pool_size=10), owns_engine=True, deadline=PATIENCE)
    await store.create_schema()
    yield store
    await store.aclose()


class _InRealTime(StoreContract):
    """The clock is the server's or the machine's, so that the contract runs in real time."""

    max_examples = 3
    steps = 15
    kind = ""

    def make_clock(self) -> Clock:
        return RealClock(unit=0.05, resolution=0.01)

    @pytest.fixture(autouse=True)
    def _url(self, url_of: Callable[[str], sa.URL]) -> None:
        self.url = url_of(self.kind)


class _Sync(_InRealTime):
    @contextmanager
    def open_store(self, clock: Clock) -> Iterator[SyncStore]:
        with opened(self.url) as store:
            yield store


class _Async(_InRealTime):
    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        async with opened_async(self.url) as store:
            yield store


class TestPsycopgContract(_Sync):
    kind = "postgresql+psycopg"


class TestMariaDBContract(_Sync):
    kind = "mysql+pymysql"


class TestSqliteContract(_Sync):
    kind = "sqlite+pysqlite"


class TestAsyncpgContract(_Async):
    kind = "postgresql+asyncpg"


class TestAsyncmyContract(_Async):
    kind = "mysql+asyncmy"


class TestAiosqliteContract(_Async):
    kind = "sqlite+aiosqlite"


@pytest.mark.parametrize("kind", SYNC)
def test_eight_threads_racing_for_two_hundred_keys_run_each_once(
    url_of: Callable[[str], sa.URL], kind: str
) -> None:
    batch = secrets.token_hex(6)
    keys = [StorageKey(f"race-{batch}-{number}") for number in range(200)]
    completed = {key: threading.Event() for key in keys}
    with opened(url_of(kind)) as store:

        def work(_: int) -> list[StorageKey]:
            won = []
            for key in keys:
                while True:
                    reply = store.acquire(key, owner=owner(), **ACQUIRE)
                    if isinstance(reply, Completed):
                        break
                    if isinstance(reply, Running):
                        assert completed[key].wait(PATIENCE)
                        continue
                    won.append(key)
                    assert store.complete(reply.claim, b'{"n":1}', retention=60.0)
                    completed[key].set()
            return won

        with ThreadPoolExecutor(8) as threads:
            runs = [key for won in threads.map(work, range(8)) for key in won]
    assert sorted(runs) == sorted(keys)


async def _claim_concurrently(url: sa.URL) -> list[Any]:
    key = StorageKey(f"once-{secrets.token_hex(6)}")
    async with opened_async(url) as store:
        return await asyncio.gather(*(store.acquire(key, owner=owner(), **ACQUIRE) for _ in range(10)))


@pytest.mark.parametrize("kind", ASYNC)
def test_one_of_ten_concurrent_tasks_is_granted_a_key(url_of: Callable[[str], sa.URL], kind: str) -> None:
    replies = asyncio.run(_claim_concurrently(url_of(kind)))
    assert [type(reply) for reply in replies].count(Acquired) == 1


@pytest.mark.parametrize("kind", SYNC)
def test_the_fence_rises_across_release_and_forgetting(url_of: Callable[[str], sa.URL], kind: str) -> None:
    key, fences = StorageKey(f"fence-{secrets.token_hex(6)}"), []
    with opened(url_of(kind)) as store:
        for turn in range(6):
            reply = store.acquire(key, owner=owner(), **ACQUIRE)
            assert isinstance(reply, Acquired)
            fences.append(reply.claim.fence)
            if turn % 2:
                assert store.release(reply.claim) is True
            else:
                assert store.complete(reply.claim, b"{}", retention=60.0)
                assert store.forget(key) is True
            assert store.forget(key) is False
    assert fences == sorted(set(fences))


@pytest.mark.parametrize("kind", SYNC)
def test_operators_can_list_and_purge(url_of: Callable[[str], sa.URL], kind: str) -> None:
    with opened(url_of(kind), table=f"own_{secrets.token_hex(6)}") as store:
        assert isinstance(store, SyncInspectable)
        assert isinstance(store, SyncPurgeable)
        keys = [StorageKey(f"k-{number:02}") for number in range(12)]
        for key in keys:
            store.acquire(key, owner=owner(), **ACQUIRE)
        seen, cursor, first = [], None, True
        while first or cursor is not None:
            page = store.scan(limit=5, cursor=cursor)
            seen += [record.key for record in page.records]
            cursor, first = page.cursor, False
        assert seen == keys
        old = [StorageKey(f"old-{number}") for number in range(7)]
        for name in old:
            store.acquire(
                name, fingerprint=ACQUIRE["fingerprint"], owner=owner(), lease=0.001, retention=0.001
            )
        until_forgotten_sync(store, *old)
        assert store.purge(limit=5) == 5
        assert store.purge(limit=5) == 2


@pytest.mark.parametrize("kind", SYNC)
def test_effect_and_record_are_committed_or_rolled_back_together(
    url_of: Callable[[str], sa.URL], kind: str
) -> None:
    key, table = StorageKey(f"in-{secrets.token_hex(6)}"), f"t_{secrets.token_hex(6)}"
    engine = sa.create_engine(url_of(kind), poolclass=sa.NullPool)
    with opened(url_of(kind)) as store:
        reply = store.acquire(key, owner=owner(), **ACQUIRE)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE {table} (n INTEGER)")
        for end in ("rollback", "commit"):
            with engine.connect() as connection:
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES (1)")
                assert store.complete_in(connection, reply.claim, b'{"n":1}', retention=60.0) is True
                getattr(connection, end)()
            with engine.connect() as connection:
                effects = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            record = store.get(key)
            assert (effects, record.outcome) == ((0, None) if end == "rollback" else (1, b'{"n":1}'))
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE {table}")


@pytest.mark.parametrize("settle", ["commit", "complete", "release", "forget"])
@pytest.mark.parametrize("kind", SYNC)
def test_complete_in_returns_false_for_a_settled_claim(
    url_of: Callable[[str], sa.URL], kind: str, settle: str
) -> None:
    """False tells a caller that repeats a transaction whose commit was not answered to roll back."""
    key = StorageKey(f"settled-{secrets.token_hex(6)}")
    engine = sa.create_engine(url_of(kind), poolclass=sa.NullPool)
    with opened(url_of(kind)) as store:
        claim = store.acquire(key, owner=owner(), **ACQUIRE).claim
        if settle == "commit":
            with engine.begin() as connection:
                assert store.complete_in(connection, claim, b'{"n":1}', retention=60.0) is True
        elif settle == "complete":
            assert store.complete(claim, b'{"n":1}', retention=60.0) is True
        elif settle == "release":
            assert store.release(claim) is True
        else:
            assert store.forget(key) is True
        with engine.connect() as connection:
            assert store.complete_in(connection, claim, b'{"n":2}', retention=60.0) is False
            connection.rollback()
        record = store.get(key)
        assert (record and record.outcome) == (b'{"n":1}' if settle in {"commit", "complete"} else None)
        assert store.complete(claim, b'{"n":2}', retention=60.0) is (record is not None), (
            "R3: a repeat is True"
        )


def test_mariadb_completes_in_a_transaction_with_an_old_snapshot(url_of: Callable[[str], sa.URL]) -> None:
    key = StorageKey(f"old-{secrets.token_hex(6)}")
    engine = sa.create_engine(
        url_of("mysql+pymysql"), isolation_level="REPEATABLE READ", poolclass=sa.NullPool
    )
    with opened(url_of("mysql+pymysql")) as store, engine.connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM idempotency_record").all()
        reply = store.acquire(key, owner=owner(), **ACQUIRE)
        assert store.renew(reply.claim, lease=40.0)
        assert store.complete_in(connection, reply.claim, b"{}", retention=60.0) is True
        connection.commit()
        assert isinstance(store.acquire(key, owner=owner(), **ACQUIRE), Completed)


@pytest.mark.parametrize("kind", ["postgresql+psycopg", "sqlite+pysqlite"])
def test_the_drivers_own_store_shares_its_records_with_the_sqlalchemy_store(
    url_of: Callable[[str], sa.URL], kind: str, postgres_url: str, tmp_path: Path
) -> None:
    from psycopg_pool import ConnectionPool

    key = StorageKey(f"shared-{secrets.token_hex(6)}")
    with (
        opened(url_of(kind)) as store,
        ConnectionPool(postgres_url, min_size=1, max_size=1, open=False) as pool,
    ):
        own: Any = (
            SyncPostgresStore(pool, deadline=PATIENCE)
            if "postgres" in kind
            else SyncSQLiteStore(tmp_path / "records.db")
        )
        reply = own.acquire(key, owner=owner(), **ACQUIRE)
        assert isinstance(store.acquire(key, owner=owner(), **ACQUIRE), Running)
        assert store.complete(reply.claim, b'{"n":1}', retention=60.0)
        assert own.acquire(key, owner=owner(), **ACQUIRE).outcome == b'{"n":1}'
        own.close()


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
@pytest.mark.parametrize("kind", SYNC)
def test_a_key_is_granted_once_under_every_isolation_level(
    url_of: Callable[[str], sa.URL], kind: str, level: Any
) -> None:
    key = StorageKey(f"level-{secrets.token_hex(6)}")
    with opened(url_of(kind), isolation_level=level) as store, ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda _: store.acquire(key, owner=owner(), **ACQUIRE), range(6)))
        (won,) = [reply for reply in replies if isinstance(reply, Acquired)]
        assert store.complete(won.claim, b"{}", retention=60.0)
        untouched = sa.create_engine(url_of(kind), isolation_level=level, poolclass=sa.NullPool)
        with store._engine.connect() as connection, untouched.connect() as fresh:
            assert connection.get_isolation_level() == fresh.get_isolation_level(), (
                "the engine's own level is unchanged"
            )


@pytest.mark.parametrize(
    ("kind", "own", "end", "left"),
    [
        (
            "postgresql+psycopg",
            "SELECT pg_backend_pid()",
            "SELECT pg_terminate_backend({0})",
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {0}",
        ),
        (
            "mysql+pymysql",
            "SELECT connection_id()",
            "KILL {0}",
            "SELECT count(*) FROM information_schema.processlist WHERE id = {0}",
        ),
    ],
)
def test_a_connection_that_the_server_closed_is_replaced(
    url_of: Callable[[str], sa.URL], kind: str, own: str, end: str, left: str
) -> None:
    key = StorageKey(f"dead-{secrets.token_hex(6)}")
    with opened(url_of(kind)) as store:
        reply = store.acquire(key, owner=owner(), **ACQUIRE)
        with store._engine.connect() as pooled:
            number = pooled.exec_driver_sql(own).scalar_one()
        killer = sa.create_engine(url_of(kind), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with killer.connect() as connection:
            connection.exec_driver_sql(end.format(number))
            until_sync(lambda: connection.exec_driver_sql(left.format(number)).scalar_one() == 0)
        assert store._engine.pool.checkedin() == 1, "the pool still holds it"
        assert store.renew(reply.claim, lease=30.0) is True


def test_the_error_for_an_unsupported_connection_lists_the_supported_ones(
    url_of: Callable[[str], sa.URL],
) -> None:
    with opened(url_of("mysql+pymysql")) as store:
        granted = store.acquire(StorageKey(f"raw-{secrets.token_hex(6)}"), owner=owner(), **ACQUIRE).claim
        raw = store._engine.raw_connection()
        with pytest.raises(TypeError, match=r"Session or Connection or Django's connection, not pymysql"):
            store.complete_in(raw.driver_connection, granted, b"{}", retention=60.0)
        raw.close()


def test_the_error_in_a_read_only_transaction_says_read_only(url_of: Callable[[str], sa.URL]) -> None:
    with opened(url_of("mysql+pymysql")) as store:
        granted = store.acquire(StorageKey(f"read-{secrets.token_hex(6)}"), owner=owner(), **ACQUIRE).claim
        with sa.create_engine(url_of("mysql+pymysql"), poolclass=sa.NullPool).connect() as connection:
            connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
            connection.rollback()
            with pytest.raises(StoreUnavailable, match="read-only"):
                store.complete_in(connection, granted, b"{}", retention=60.0)


def test_the_error_for_a_missing_table_names_create_schema(url_of: Callable[[str], sa.URL]) -> None:
    for kind in ("postgresql+psycopg", "mysql+pymysql"):
        store = SyncSQLAlchemyStore(sa.create_engine(url_of(kind), poolclass=sa.NullPool), table="nowhere")
        with pytest.raises(StoreUnavailable, match="create_schema"):
            store.get(StorageKey("k"))


@pytest.mark.parametrize("kind", SYNC)
def test_an_unreachable_database_raises_store_error_without_its_password(kind: str, tmp_path: Path) -> None:
    place = f"/{tmp_path}/no/such/directory/x.db" if "sqlite" in kind else "u:hidden@127.0.0.1:1/x"
    store = SyncSQLAlchemyStore(sa.create_engine(f"{kind}://{place}", poolclass=sa.NullPool))
    with pytest.raises(StoreError) as caught:
        store.get(StorageKey("k"))
    assert "hidden" not in str(caught.value)


def test_a_driver_that_cannot_bind_bytes_is_refused() -> None:
    class Dialect:
        name, driver, paramstyle = "mysql", "aiomysql", "pyformat"

    class Engine:
        dialect = Dialect()

    with pytest.raises(ValueError, match="asyncmy"):
        SQLAlchemyStore(Engine(), deadline=PATIENCE)  # type: ignore[arg-type]


def test_a_second_event_loop_is_refused(url_of: Callable[[str], sa.URL]) -> None:
    store = SQLAlchemyStore(
        create_async_engine(url_of("sqlite+aiosqlite")), owns_engine=True, deadline=PATIENCE
    )
    with asyncio.Runner() as first:
        first.run(store.create_schema())
        with asyncio.Runner() as second, pytest.raises(RuntimeError, match="SyncSQLAlchemyStore"):
            second.run(store.get(StorageKey("k")))
        assert isinstance(store, Inspectable)
        assert isinstance(store, Purgeable)
        first.run(store.aclose())


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
def test_schema_of_gives_repeatable_statements(dialect: str) -> None:
    statements = schema_of(dialect, "t")
    assert any("CREATE TABLE" in statement for statement in statements)
    assert all("IF NOT EXISTS" in statement or "INSERT" in statement for statement in statements)


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
def test_schema_of_refuses_an_invalid_table_name(dialect: str) -> None:
    with pytest.raises(ValueError, match="table must be"):
        schema_of(dialect, "a;b")


def test_schema_of_refuses_an_unknown_dialect() -> None:
    with pytest.raises(ValueError, match="not in oracle"):
        schema_of("oracle")
