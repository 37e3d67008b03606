"""
`complete_in` through SQLAlchemy, asyncpg and aiosqlite: effect and record are committed together, or neither is.

Each *way* opens a transaction, makes an effect in it, and yields the connection or session for `complete_in`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import pytest
import sqlalchemy as sa
from patience import PATIENCE
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from idempotency import Acquired, Claim, Fingerprint, Owner, StorageKey
from idempotency.errors import IsolationConflict
from idempotency.stores.encrypted import EncryptedStore, KeyRing, SyncEncryptedStore
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore
from idempotency.stores.threaded import ThreadedStore

pytestmark = pytest.mark.anyio

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
OUTCOME = b'{"n":1}'
INSERT = "INSERT INTO charge_in (cents) VALUES (500)"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"in-{secrets.token_hex(8)}")


def owner() -> Owner:
    return Owner(secrets.token_bytes(16))


class Boom(Exception):
    pass


class Base(DeclarativeBase):
    pass


class Named(Base):
    __tablename__ = "named"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Database:
    """One database that has effects and records."""

    def __init__(self, backend: str, url: str) -> None:
        self.backend = backend
        self.url = url  # in SQLAlchemy's form, without a driver
        with self.engine().begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS charge_in")
            connection.exec_driver_sql("CREATE TABLE charge_in (cents INTEGER)")
            Base.metadata.drop_all(connection)
            Base.metadata.create_all(connection)

    def engine(self, **options: Any) -> sa.Engine:
        driver = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite"}[self.backend]
        return sa.create_engine(self.url.replace(self.backend, driver, 1), poolclass=sa.NullPool, **options)

    def async_engine(self, driver: str, **options: Any) -> Any:
        url = self.url.replace(self.backend, f"{self.backend}+{driver}", 1)
        return create_async_engine(url, poolclass=sa.NullPool, **options)

    @property
    def charges(self) -> int:
        with self.engine().connect() as connection:
            return connection.exec_driver_sql("SELECT count(*) FROM charge_in").scalar_one()


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return Database("sqlite", f"sqlite:///{tmp_path}/shop.db")
    given = conninfo_to_dict(request.getfixturevalue("postgres_url"))
    url = sa.URL.create(
        "postgresql", given.get("user"), given.get("password"), None, None, given.get("dbname"),
        query={"host": str(given["host"])},
    )  # fmt: skip
    return Database("postgresql", url.render_as_string(hide_password=False))


@pytest.fixture(params=["plain", "encrypted"])
def sync_store(request: pytest.FixtureRequest, database: Database) -> Iterator[Any]:
    ring = KeyRing({"k": bytes(32)}, current="k")
    if database.backend == "sqlite":
        store: Any = SyncSQLiteStore(database.url.removeprefix("sqlite:///"))
        yield SyncEncryptedStore(store, ring) if request.param == "encrypted" else store
        store.close()
        return
    with ConnectionPool(request.getfixturevalue("postgres_url"), min_size=1, max_size=2, open=False) as pool:
        store = SyncPostgresStore(pool, deadline=PATIENCE)
        yield SyncEncryptedStore(store, ring) if request.param == "encrypted" else store
        store.close()


@pytest.fixture(params=["plain", "encrypted"])
async def async_store(
    request: pytest.FixtureRequest, database: Database, anyio_backend: str
) -> AsyncIterator[Any]:
    ring = KeyRing({"k": bytes(32)}, current="k")
    if database.backend == "sqlite":
        store: Any = SQLiteStore(database.url.removeprefix("sqlite:///"))
        yield EncryptedStore(store, ring) if request.param == "encrypted" else store
        await store.aclose()
        return
    async with AsyncConnectionPool(
        request.getfixturevalue("postgres_url"), min_size=1, max_size=2, open=False
    ) as pool:
        store = PostgresStore(pool, deadline=PATIENCE)
        yield EncryptedStore(store, ring) if request.param == "encrypted" else store
        await store.aclose()


def claimed(store: Any, key: StorageKey) -> Claim:
    reply = store.acquire(key, owner=owner(), **ACQUIRE)
    assert isinstance(reply, Acquired)
    return reply.claim


async def claimed_async(store: Any, key: StorageKey) -> Claim:
    reply = await store.acquire(key, owner=owner(), **ACQUIRE)
    assert isinstance(reply, Acquired)
    return reply.claim


# SQLAlchemy without an event loop.


@contextmanager
def by_session(database: Database) -> Iterator[Any]:
    with sessionmaker(database.engine())() as session, session.begin():
        session.execute(sa.text(INSERT))
        yield session


@contextmanager
def by_scoped_session(database: Database) -> Iterator[Any]:
    scoped = scoped_session(sessionmaker(database.engine()))
    try:
        scoped.execute(sa.text(INSERT))
        yield scoped
        scoped.commit()
    finally:
        scoped.remove()


@contextmanager
def by_connection(database: Database) -> Iterator[Any]:
    with database.engine().begin() as connection:
        connection.execute(sa.text(INSERT))
        yield connection


@contextmanager
def by_record_first(database: Database) -> Iterator[Any]:
    """The record is the first statement of the transaction, and must not be committed alone."""
    with Session(database.engine()) as session, session.begin():
        yield session
        session.execute(sa.text(INSERT))


SYNC_WAYS: list[Callable[[Database], Any]] = [by_session, by_scoped_session, by_connection, by_record_first]


class TestSQLAlchemy:
    @pytest.mark.parametrize("way", SYNC_WAYS, ids=lambda way: way.__name__)
    def test_effect_and_record_are_committed_or_rolled_back_together(
        self, database: Database, sync_store: Any, key: StorageKey, way: Callable[[Database], Any]
    ) -> None:
        granted = claimed(sync_store, key)

        def fail_at_the_end() -> None:
            with way(database) as handle:
                assert sync_store.complete_in(handle, granted, OUTCOME, retention=60.0) is True
                raise Boom

        with pytest.raises(Boom):
            fail_at_the_end()
        assert (database.charges, sync_store.get(key).outcome) == (0, None)
        with way(database) as handle:
            assert sync_store.complete_in(handle, granted, OUTCOME, retention=60.0) is True
        assert (database.charges, sync_store.get(key).outcome) == (1, OUTCOME)

    def test_complete_in_returns_false_for_a_lost_claim(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        granted = claimed(sync_store, key)
        assert sync_store.forget(key)
        with Session(database.engine()) as session:
            session.execute(sa.text(INSERT))
            assert sync_store.complete_in(session, granted, OUTCOME, retention=60.0) is False

    def test_autocommit_is_refused(self, database: Database, sync_store: Any, key: StorageKey) -> None:
        granted = claimed(sync_store, key)
        with database.engine(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(sa.text(INSERT))
            with pytest.raises(ValueError, match="commits every statement"):
                sync_store.complete_in(connection, granted, OUTCOME, retention=60.0)
        assert sync_store.get(key).outcome is None

    def test_autocommit_set_on_one_connection_is_refused(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        granted = claimed(sync_store, key)
        options = {"isolation_level": "AUTOCOMMIT"}
        with (
            database.engine().connect().execution_options(**options) as connection,
            pytest.raises(ValueError, match="commits every statement"),
        ):
            sync_store.complete_in(connection, granted, OUTCOME, retention=60.0)
        assert sync_store.get(key).outcome is None

    @pytest.mark.parametrize("kind", ["session", "connection"])
    def test_a_savepoint_is_refused(
        self, database: Database, sync_store: Any, key: StorageKey, kind: str
    ) -> None:
        granted = claimed(sync_store, key)
        with database.engine().connect() as connection:
            handle: Any = Session(connection) if kind == "session" else connection
            handle.execute(sa.text(INSERT))
            with handle.begin_nested(), pytest.raises(ValueError, match="savepoint"):
                sync_store.complete_in(handle, granted, OUTCOME, retention=60.0)
            assert sync_store.complete_in(handle, granted, OUTCOME, retention=60.0) is True
            handle.rollback()

    def test_a_session_joined_to_an_outer_transaction_by_a_savepoint_is_accepted(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        granted = claimed(sync_store, key)
        with database.engine().connect() as connection, connection.begin() as outer:
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                session.execute(sa.text(INSERT))
                assert sync_store.complete_in(session, granted, OUTCOME, retention=60.0) is True
                session.commit()
            outer.rollback()
        # SQLite's driver begins no transaction around the savepoint, so that the outer rollback undoes nothing, neither
        # the effect nor the record.
        together = {"postgresql": (0, None), "sqlite": (1, OUTCOME)}[database.backend]
        assert (database.charges, sync_store.get(key).outcome) == together

    def test_a_connection_to_another_kind_of_database_is_refused(
        self, database: Database, sync_store: Any, key: StorageKey, tmp_path: Path, postgres_url: str
    ) -> None:
        other = "postgresql+psycopg" if database.backend == "sqlite" else "sqlite"
        options: dict[str, Any] = {}
        if other != "sqlite":
            given = conninfo_to_dict(postgres_url)
            options = {"connect_args": {"host": given["host"], "user": given["user"]}}
        engine = sa.create_engine(f"{other}://", poolclass=sa.NullPool, **options)
        with engine.connect() as connection, pytest.raises(ValueError, match="must be in the same database"):
            sync_store.complete_in(connection, claimed(sync_store, key), OUTCOME, retention=60.0)

    def test_an_engine_or_a_session_factory_is_refused(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        for wrong in (database.engine(), sessionmaker(database.engine()), None, "x"):
            with pytest.raises(TypeError, match=r"SQLAlchemy's Session or Connection.*Django's connection"):
                sync_store.complete_in(
                    wrong, claimed(sync_store, StorageKey(f"{key}-{id(wrong)}")), OUTCOME, retention=60.0
                )

    def test_an_async_session_is_refused_and_the_error_names_the_async_store(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        with pytest.raises(TypeError, match=r"(PostgresStore|SQLiteStore) takes"):
            sync_store.complete_in(AsyncSession(), claimed(sync_store, key), OUTCOME, retention=60.0)

    def test_an_integrity_error_at_the_flush_is_raised_unchanged(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        granted = claimed(sync_store, key)
        with Session(database.engine(), autoflush=False) as session:
            session.add_all([Named(name="twice"), Named(name="twice")])
            with pytest.raises(sa.exc.IntegrityError):
                sync_store.complete_in(session, granted, OUTCOME, retention=60.0)
            with pytest.raises(sa.exc.PendingRollbackError):
                sync_store.complete_in(session, granted, OUTCOME, retention=60.0)
        assert sync_store.get(key).outcome is None

    def test_a_session_with_autobegin_off_raises_sqlalchemys_own_error(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        with (
            Session(database.engine(), autobegin=False) as session,
            pytest.raises(sa.exc.InvalidRequestError, match=r"call session.begin\(\)"),
        ):
            sync_store.complete_in(session, claimed(sync_store, key), OUTCOME, retention=60.0)

    def test_a_session_with_binds_by_mapper_is_refused_and_its_connection_is_accepted(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        granted = claimed(sync_store, key)
        with Session(binds={Named: database.engine()}) as session:
            session.add(Named(name="one"))
            with pytest.raises(ValueError, match="bind_arguments"):
                sync_store.complete_in(session, granted, OUTCOME, retention=60.0)
            connection = session.connection(bind_arguments={"mapper": Named})
            assert sync_store.complete_in(connection, granted, OUTCOME, retention=60.0) is True
            session.commit()
        assert sync_store.get(key).outcome == OUTCOME

    def test_a_savepoint_of_the_sessions_connection_is_refused(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        granted = claimed(sync_store, key)
        with Session(database.engine()) as session:
            session.execute(sa.text(INSERT))
            with session.connection().begin_nested(), pytest.raises(ValueError, match="savepoint"):
                sync_store.complete_in(session, granted, OUTCOME, retention=60.0)
            session.commit()
        assert sync_store.get(key).outcome is None

    def test_a_snapshot_older_than_the_last_renewal_raises_isolation_conflict(
        self, database: Database, sync_store: Any, key: StorageKey
    ) -> None:
        granted = claimed(sync_store, key)
        options = {} if database.backend == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        with database.engine(**options).connect() as connection:
            if database.backend == "sqlite":
                connection.exec_driver_sql("BEGIN")  # the driver itself begins only at a write
            connection.exec_driver_sql("SELECT count(*) FROM charge_in").all()
            assert sync_store.renew(granted, lease=60.0)
            with pytest.raises(IsolationConflict):
                sync_store.complete_in(connection, granted, OUTCOME, retention=60.0)
            connection.rollback()


# With an event loop.


@asynccontextmanager
async def by_async_session(database: Database, driver: str) -> AsyncIterator[Any]:
    async with async_sessionmaker(database.async_engine(driver))() as session, session.begin():
        await session.execute(sa.text(INSERT))
        yield session


@asynccontextmanager
async def by_async_scoped_session(database: Database, driver: str) -> AsyncIterator[Any]:
    scoped = async_scoped_session(async_sessionmaker(database.async_engine(driver)), scopefunc=lambda: 1)
    try:
        await scoped.execute(sa.text(INSERT))
        yield scoped
        await scoped.commit()
    finally:
        await scoped.remove()


@asynccontextmanager
async def by_async_connection(database: Database, driver: str) -> AsyncIterator[Any]:
    async with database.async_engine(driver).begin() as connection:
        await connection.execute(sa.text(INSERT))
        yield connection


@asynccontextmanager
async def by_async_record_first(database: Database, driver: str) -> AsyncIterator[Any]:
    async with AsyncSession(database.async_engine(driver)) as session, session.begin():
        yield session
        await session.execute(sa.text(INSERT))


@asynccontextmanager
async def by_driver(database: Database, driver: str) -> AsyncIterator[Any]:
    if database.backend == "sqlite":
        async with aiosqlite.connect(database.url.removeprefix("sqlite:///")) as connection:
            connection.row_factory = aiosqlite.Row
            await connection.execute(INSERT)
            yield connection
            await connection.commit()
        return
    url = sa.make_url(database.url)
    host = url.query["host"]
    connection = await asyncpg.connect(host=host, user=url.username, database=url.database)
    try:
        async with connection.transaction():
            await connection.execute(INSERT)
            yield connection
    finally:
        await connection.close()


ASYNC_WAYS: list[Any] = [
    by_async_session,
    by_async_scoped_session,
    by_async_connection,
    by_async_record_first,
    by_driver,
]


class TestEventLoop:
    @pytest.fixture(params=["its own", "psycopg"])
    def driver(self, request: pytest.FixtureRequest, database: Database) -> str:
        if request.param == "psycopg":
            if database.backend == "sqlite":
                pytest.skip("psycopg is a driver for PostgreSQL")
            return "psycopg"
        return {"postgresql": "asyncpg", "sqlite": "aiosqlite"}[database.backend]

    @pytest.mark.parametrize("way", ASYNC_WAYS, ids=lambda way: way.__name__)
    async def test_effect_and_record_are_committed_or_rolled_back_together(
        self, database: Database, async_store: Any, key: StorageKey, way: Any, driver: str
    ) -> None:
        granted = await claimed_async(async_store, key)

        async def fail_at_the_end() -> None:
            async with way(database, driver) as handle:
                assert await async_store.complete_in(handle, granted, OUTCOME, retention=60.0) is True
                raise Boom

        with pytest.raises(Boom):
            await fail_at_the_end()
        assert (database.charges, (await async_store.get(key)).outcome) == (0, None)
        async with way(database, driver) as handle:
            assert await async_store.complete_in(handle, granted, OUTCOME, retention=60.0) is True
        assert (database.charges, (await async_store.get(key)).outcome) == (1, OUTCOME)

    async def test_autocommit_and_savepoints_are_refused(
        self, database: Database, async_store: Any, key: StorageKey, driver: str
    ) -> None:
        granted = await claimed_async(async_store, key)
        async with database.async_engine(driver, isolation_level="AUTOCOMMIT").connect() as connection:
            with pytest.raises(ValueError, match="commits every statement"):
                await async_store.complete_in(connection, granted, OUTCOME, retention=60.0)
        async with AsyncSession(database.async_engine(driver)) as session:
            await session.execute(sa.text(INSERT))
            async with session.begin_nested():
                with pytest.raises(ValueError, match="savepoint"):
                    await async_store.complete_in(session, granted, OUTCOME, retention=60.0)
        assert (await async_store.get(key)).outcome is None

    async def test_an_integrity_error_at_the_flush_is_raised_unchanged(
        self, database: Database, async_store: Any, key: StorageKey, driver: str
    ) -> None:
        granted = await claimed_async(async_store, key)
        async with AsyncSession(database.async_engine(driver)) as session:
            session.add_all([Named(name="twice"), Named(name="twice")])
            with pytest.raises(sa.exc.IntegrityError):
                await async_store.complete_in(session, granted, OUTCOME, retention=60.0)
        assert (await async_store.get(key)).outcome is None

    async def test_complete_in_accepts_the_sync_session_inside_run_sync(
        self, database: Database, async_store: Any, sync_store: Any, key: StorageKey, driver: str
    ) -> None:
        granted = claimed(sync_store, key)

        def work(session: Session) -> bool:
            session.execute(sa.text(INSERT))
            return bool(sync_store.complete_in(session, granted, OUTCOME, retention=60.0))

        async with AsyncSession(database.async_engine(driver)) as session:
            assert await session.run_sync(work) is True
            await session.commit()
        assert (database.charges, sync_store.get(key).outcome) == (1, OUTCOME)

    async def test_a_driver_connection_without_a_transaction_is_refused(
        self, database: Database, async_store: Any, key: StorageKey
    ) -> None:
        granted = await claimed_async(async_store, key)
        if database.backend == "sqlite":
            async with aiosqlite.connect(database.url.removeprefix("sqlite:///")) as connection:
                with pytest.raises(ValueError, match="transaction"):
                    async_store.complete_in(connection, granted, OUTCOME, retention=60.0)
        else:
            url = sa.make_url(database.url)
            pool = await asyncpg.create_pool(host=url.query["host"], user=url.username, database=url.database)
            async with pool.acquire() as connection:
                with pytest.raises(ValueError, match="transaction"):
                    await async_store.complete_in(connection, granted, OUTCOME, retention=60.0)
                async with connection.transaction():
                    assert await async_store.complete_in(connection, granted, OUTCOME, retention=60.0) is True
            await pool.close()

    async def test_an_unawaited_complete_in_has_no_truth_value(self, tmp_path: Path) -> None:
        database = Database("sqlite", f"sqlite:///{tmp_path}/shop.db")
        store = SQLiteStore(tmp_path / "shop.db")
        granted = await claimed_async(store, StorageKey("k"))
        async with AsyncSession(database.async_engine("aiosqlite")) as session:
            with pytest.raises(TypeError, match="awaited"):
                bool(store.complete_in(session, granted, OUTCOME, retention=60.0))
        await store.aclose()

    async def test_a_sync_session_is_refused_and_the_error_names_the_sync_store(
        self, database: Database, async_store: Any, key: StorageKey
    ) -> None:
        if database.backend == "sqlite":
            pytest.skip("SQLiteStore takes both")
        granted = await claimed_async(async_store, key)
        with pytest.raises(TypeError, match="SyncPostgresStore takes"):
            await async_store.complete_in(Session(database.engine()), granted, OUTCOME, retention=60.0)


async def test_a_store_in_threads_completes_in_the_callers_transaction(
    database: Database, request: pytest.FixtureRequest, key: StorageKey
) -> None:
    if database.backend == "sqlite":
        inner: Any = SyncSQLiteStore(database.url.removeprefix("sqlite:///"))
    else:
        pool = ConnectionPool(request.getfixturevalue("postgres_url"), min_size=1, max_size=2, open=True)
        request.addfinalizer(pool.close)
        inner = SyncPostgresStore(pool, deadline=PATIENCE)
    store = ThreadedStore(inner)
    granted = await claimed_async(store, key)
    with Session(database.engine()) as session, session.begin():
        session.execute(sa.text(INSERT))
        assert store.complete_in(session, granted, OUTCOME, retention=60.0) is True
    assert (await store.get(key)).outcome == OUTCOME
    assert await store.purge(limit=1) in {0, 1}
    assert (await store.scan(limit=1, cursor=key[:-1])).records[0].key == key
    assert await store.forget(key) is True
    await store.aclose()
