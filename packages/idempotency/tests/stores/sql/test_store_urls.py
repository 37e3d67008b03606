"""SQLAlchemy stores, and alternative scheme names of other stores, opened by a URL."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, with_long_deadline
from psycopg.conninfo import conninfo_to_dict

from idempotency import Acquired, Completed, Fingerprint, Owner, StorageKey
from idempotency.cli import main
from idempotency.errors import StoreUnavailable
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore
from idempotency.stores.redis import RedisStore, SyncRedisStore
from idempotency.stores.sqlalchemy import SQLAlchemyStore, SyncSQLAlchemyStore
from idempotency.stores.url import open_store, open_sync_store

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}


@pytest.fixture
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    def url(scheme: str) -> str:
        if scheme.startswith(("mysql", "mariadb")):
            return f"{scheme}://{request.getfixturevalue('mariadb_server_url')}"
        if scheme.startswith("sqlite"):
            return f"{scheme}:///{tmp_path}/records.db"
        if scheme.startswith("valkey"):
            return str(request.getfixturevalue("redis_url")).replace("redis", scheme, 1)
        given = conninfo_to_dict(request.getfixturevalue("postgres_url"))
        return f"{scheme}://{given.get('user', '')}@/{given.get('dbname', '')}?host={given['host']}"

    return url


SCHEMES = {
    "postgres": (PostgresStore, SyncPostgresStore),
    "valkey": (RedisStore, SyncRedisStore),
    "mysql": (SQLAlchemyStore, SyncSQLAlchemyStore),
    "mariadb": (SQLAlchemyStore, SyncSQLAlchemyStore),
    "mysql+asyncmy": (SQLAlchemyStore, SyncSQLAlchemyStore),
    "mysql+pymysql": (SQLAlchemyStore, SyncSQLAlchemyStore),
    "postgresql+asyncpg": (SQLAlchemyStore, SyncSQLAlchemyStore),
    "postgresql+psycopg": (SQLAlchemyStore, SyncSQLAlchemyStore),
    "sqlite+aiosqlite": (SQLAlchemyStore, SyncSQLAlchemyStore),
    "sqlite+pysqlite": (SQLAlchemyStore, SyncSQLAlchemyStore),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_url_opens_the_async_and_the_sync_store(scheme: str, urls: Callable[[str], str]) -> None:
    key = StorageKey(f"url-{secrets.token_hex(6)}")

    async def live() -> None:
        store = open_store(with_long_deadline(urls(scheme)))
        assert type(store) is SCHEMES[scheme][0]
        await store.create_schema()
        reply = await store.acquire(key, owner=Owner(b"o" * 16), **ACQUIRE)
        assert isinstance(reply, Acquired)
        assert await store.complete(reply.claim, b"{}", retention=60.0)
        await store.aclose()

    asyncio.run(live())
    store = open_sync_store(with_long_deadline(urls(scheme)))
    assert type(store) is SCHEMES[scheme][1]
    store.create_schema()
    assert isinstance(store.acquire(key, owner=Owner(b"x" * 16), **ACQUIRE), Completed)
    assert store.forget(key)
    store.close()


@pytest.mark.parametrize("url", ["memory:", "sqlite:///{}/a.db"])
def test_create_schema_may_be_called_on_stores_that_need_none(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(url.format(tmp_path))
        await store.create_schema()
        await store.aclose()

    asyncio.run(main())
    store = open_sync_store(url.format(tmp_path))
    store.create_schema()
    store.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql+nothing://u:hidden@h/d", "names the driver 'nothing'"),
        ("mysql://u:hidden@a,b/d", "one host"),
        ("mysql://u:hidden@h/d?pool_size=many", "pool_size"),
        ("postgresql+pg8000://u:hidden@h/d", "async for a sync store|needs the driver"),
    ],
)
def test_the_error_for_a_url_that_cannot_be_opened_hides_its_password(url: str, message: str) -> None:
    with pytest.raises((ValueError, ImportError), match=message) as caught:
        open_store(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hidden" not in str(error)
        error = error.__context__


def test_options_of_a_mysql_url_reach_the_store(urls: Callable[[str], str]) -> None:
    table = f"t_{secrets.token_hex(6)}"
    store = open_sync_store(f"{urls('mysql')}?table={table}&pool_size=2&deadline=30&connect_timeout=30")
    store.create_schema()
    assert isinstance(store, SyncSQLAlchemyStore)
    assert (store._records.table, store._engine.pool.size()) == (table, 2)
    assert store.get(StorageKey("k")) is None
    store.close()


@pytest.mark.parametrize("scheme", ["mysql", "postgres", "valkey", "sqlite+pysqlite"])
def test_the_command_works_on_each_scheme(
    scheme: str, urls: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = with_long_deadline(urls(scheme))
    store = open_sync_store(url)
    store.create_schema()
    key = StorageKey(f"cli-{secrets.token_hex(6)}")
    assert isinstance(store.acquire(key, owner=Owner(b"o" * 16), **ACQUIRE), Acquired)
    assert main(["show", key, "--stored", "--store", url]) == 0
    assert main(["release", key, "--stored", "--force", "--store", url]) == 0
    assert store.get(key) is None
    assert main(["purge", "--store", url]) == 0
    assert main(["doctor", "--store", url]) in {0, 3}
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert "secret" not in printed.out + printed.err
    store.close()


def test_the_error_for_a_missing_driver_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"needs the driver pg8000, .*: pip install pg8000$"):
        open_sync_store("postgresql+pg8000://h/d")


def test_an_unsupported_driver_is_refused_before_it_is_imported() -> None:
    with pytest.raises(ValueError, match=r"use mysql\+asyncmy://"):
        open_store("mysql+aiomysql://h/d")


def test_the_deadline_of_a_url_ends_a_sync_call_to_a_mysql_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as threads:
        port = silent.getsockname()[1]
        with closing(
            open_sync_store(f"mysql+pymysql://user:secret@127.0.0.1:{port}/x?deadline=0.2")
        ) as store:
            call = threads.submit(store.get, StorageKey("k"))
            try:
                with pytest.raises(StoreUnavailable):
                    call.result(PATIENCE)
            finally:
                silent.shutdown(socket.SHUT_RDWR)  # or a call without a limit would wait for ever


@pytest.mark.parametrize("deadline", ["0", "-1", "inf", "nan"])
@pytest.mark.parametrize("opened", [open_store, open_sync_store])
def test_a_deadline_that_is_no_time_is_refused(opened: Callable[[str], object], deadline: str) -> None:
    with pytest.raises(ValueError, match="deadline"):
        opened(f"mysql+asyncmy://user@host/database?deadline={deadline}")
