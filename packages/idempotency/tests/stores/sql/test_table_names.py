"""A table may have any plain name, also a reserved word; quoted and unquoted, the name is the same table."""

from __future__ import annotations

import asyncio
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
import sqlalchemy as sa
from patience import PATIENCE
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency import Acquired, Completed, Fingerprint, Owner, StorageKey
from idempotency.cli.doctor.settings import postgres_settings
from idempotency.store import SyncInspectable, SyncPurgeable
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore
from idempotency.stores.sqlalchemy import SyncSQLAlchemyStore, schema_of
from idempotency.stores.sqlite import SyncSQLiteStore

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
# Reserved in each of the dialects ("order", "select"), and words that only some of them reserve.
WORDS = ["order", "user", "select", "rank", "window", "current_user"]


def call_everything(store: Any) -> None:
    """Run every statement of *store*."""
    store.create_schema()
    store.create_schema()
    key, owner = StorageKey(f"name-{secrets.token_hex(6)}"), Owner(secrets.token_bytes(16))
    first = store.acquire(key, owner=owner, **ACQUIRE)
    assert isinstance(first, Acquired)
    assert store.renew(first.claim, lease=30.0)
    assert store.release(first.claim)
    second = store.acquire(key, owner=owner, **ACQUIRE)
    assert isinstance(second, Acquired)
    assert second.claim.fence > first.claim.fence
    assert store.complete(second.claim, b"{}", retention=60.0)
    assert isinstance(store.acquire(key, owner=owner, **ACQUIRE), Completed)
    assert isinstance(store, SyncInspectable)
    assert [record.key for record in store.scan().records] == [key]
    assert store.forget(key)
    lapsed = store.acquire(key, owner=owner, fingerprint=ACQUIRE["fingerprint"], lease=0.0, retention=0.0)
    assert isinstance(lapsed, Acquired)
    assert isinstance(store, SyncPurgeable)
    assert store.purge() >= 1


@pytest.fixture
def postgres_schema(postgres_url: str) -> Iterator[str]:
    """A connection string whose search path is a schema for one test."""
    schema = f"names_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE SCHEMA {schema}".encode())
        yield make_conninfo(postgres_url, options=f"-c search_path={schema}")
        admin.execute(f"DROP SCHEMA {schema} CASCADE".encode())


@pytest.fixture
def mysql_database(mariadb_server_url: str) -> Iterator[sa.Engine]:
    """An engine on a database for one test."""
    name = f"names_{secrets.token_hex(6)}"
    url = sa.make_url(f"mysql+pymysql://{mariadb_server_url}")
    server, engine = sa.create_engine(url), sa.create_engine(url.set(database=name))
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name}")
    server.dispose()


@pytest.mark.parametrize("word", WORDS)
def test_sqlite_accepts_a_reserved_word_as_table_name(tmp_path: Path, word: str) -> None:
    store = SyncSQLiteStore(tmp_path / "records.db", table=word)
    call_everything(store)
    store.close()
    engine = sa.create_engine(f"sqlite:///{tmp_path}/records.db")
    with closing(SyncSQLAlchemyStore(engine, table=word, owns_engine=True)) as store_of_sqlalchemy:
        call_everything(store_of_sqlalchemy)


@pytest.mark.parametrize("word", WORDS)
def test_postgresql_accepts_a_reserved_word_as_table_name(postgres_schema: str, word: str) -> None:
    with ConnectionPool(postgres_schema, min_size=1, max_size=2, open=True) as pool:
        call_everything(SyncPostgresStore(pool, table=word, deadline=PATIENCE))
        with pool.connection() as connection:
            connection.set_autocommit(True)
            [schema] = [one for one in postgres_settings(connection, table=word) if one.check == "schema"]
            assert schema.verdict == "ok"
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(postgres_schema))
    over_sqlalchemy = SyncSQLAlchemyStore(engine, table=word, owns_engine=True)
    call_everything(over_sqlalchemy)
    over_sqlalchemy.close()


async def _complete_async(url: str, table: str) -> None:
    async with AsyncConnectionPool(url, min_size=1, max_size=2, open=False) as pool:
        store = PostgresStore(pool, table=table, deadline=PATIENCE)
        await store.create_schema()
        granted = await store.acquire(StorageKey("k"), owner=Owner(b"o" * 16), **ACQUIRE)
        assert isinstance(granted, Acquired)
        assert await store.complete(granted.claim, b"{}", retention=60.0)


def test_the_async_postgresql_store_accepts_a_reserved_word_as_table_name(postgres_schema: str) -> None:
    asyncio.run(_complete_async(postgres_schema, "order"))


@pytest.mark.parametrize("word", WORDS)
def test_mariadb_accepts_a_reserved_word_as_table_name(mysql_database: sa.Engine, word: str) -> None:
    call_everything(SyncSQLAlchemyStore(mysql_database, table=word))
    call_everything(SyncSQLAlchemyStore(mysql_database, table=f"{mysql_database.url.database}.{word}_2"))


@pytest.mark.parametrize("word", ["order", "user"])
def test_complete_in_works_with_a_reserved_word_as_table_name(
    mysql_database: sa.Engine, postgres_schema: str, tmp_path: Path, word: str
) -> None:
    engines = [
        mysql_database,
        sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(postgres_schema)),
        sa.create_engine(f"sqlite:///{tmp_path}/effect.db"),
    ]
    for engine in engines:
        store = SyncSQLAlchemyStore(engine, table=word)
        store.create_schema()
        granted = store.acquire(StorageKey("k"), owner=Owner(b"o" * 16), **ACQUIRE)
        assert isinstance(granted, Acquired)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE effect (n INTEGER)")
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO effect VALUES (1)")
            assert store.complete_in(connection, granted.claim, b"{}", retention=60.0)
        assert isinstance(store.acquire(StorageKey("k"), owner=Owner(b"p" * 16), **ACQUIRE), Completed)
        engine.dispose()


# Tables made before names were quoted are found: the SQL without quotes makes the same table.


def _unquoted(dialect: Literal["postgresql", "mysql", "sqlite"], table: str) -> list[str]:
    return [re.sub(r"[\"`](\w{2,})[\"`]", r"\1", statement) for statement in schema_of(dialect, table)]


@pytest.mark.parametrize("table", ["idempotency_record", "Orders", "ORDERS"])
def test_sqlite_finds_a_table_that_was_created_without_quotes(tmp_path: Path, table: str) -> None:
    path = tmp_path / "records.db"
    connection = sqlite3.connect(path)
    for statement in _unquoted("sqlite", table):
        connection.execute(statement)
    connection.commit()
    before = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
    store = SyncSQLiteStore(path, table=table.lower())
    call_everything(store)
    store.close()
    assert connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall() == before
    connection.close()


def test_postgresql_finds_a_table_that_was_created_without_quotes(postgres_schema: str) -> None:
    names = (
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace ORDER BY relname"
    )
    with ConnectionPool(postgres_schema, min_size=1, max_size=2, open=True) as pool:
        with pool.connection() as connection:
            for statement in _unquoted("postgresql", "records"):
                connection.execute(statement.encode())
            before = connection.execute(names).fetchall()
        call_everything(SyncPostgresStore(pool, table="records", deadline=PATIENCE))
        with pool.connection() as connection:
            assert connection.execute(names).fetchall() == before


def test_mariadb_finds_a_table_that_was_created_without_quotes(mysql_database: sa.Engine) -> None:
    with mysql_database.connect() as connection:
        for statement in _unquoted("mysql", "records"):
            connection.exec_driver_sql(statement)
        call_everything(SyncSQLAlchemyStore(mysql_database, table="records"))
        assert connection.exec_driver_sql("SHOW TABLES").all() == [("records",)]


@pytest.mark.parametrize("table", ["Upper", 'a"b', "a`b", "a b", "a.b.c", ""])
@pytest.mark.parametrize("dialect", ["postgresql", "mysql"])
def test_a_table_name_that_is_not_plain_lower_case_is_refused(
    dialect: Literal["postgresql", "mysql"], table: str
) -> None:
    with pytest.raises(ValueError, match="plain lower-case name"):
        schema_of(dialect, table)
