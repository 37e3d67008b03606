"""
Connections lost between request and answer: the histories of sixteen callers are still linearizable.

The driver loses its connection and the store repeats the call: no effect may happen twice, and none may be denied.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import anyio
import django_project
import pytest
from breaking_proxy import Break, BreakingProxy
from concurrent_callers import RESOLUTION, histories, noting_failed_tries
from histories import fences_increase, is_linearizable
from patience import PATIENCE
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from idempotency.store import Store
from idempotency.stores._sql.steps import Steps
from idempotency.stores.django import SyncDjangoStore
from idempotency.stores.django.connections import Connections
from idempotency.stores.postgres import PostgresStore
from idempotency.stores.sqlalchemy import SQLAlchemyStore, SyncSQLAlchemyStore
from idempotency.stores.sqlalchemy.run import Runner
from idempotency.stores.threaded import ThreadedStore

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class RetoldPostgresStore(PostgresStore):
    async def _execute_once(self, statement: str, values: Any) -> Any:
        with noting_failed_tries():
            return await super()._execute_once(statement, values)


class RetoldRunner(Runner):
    def run(self, connection: Connection, make: Callable[[], Steps[T]]) -> T:
        with noting_failed_tries():
            return super().run(connection, make)


class RetoldConnections(Connections):
    def run(self, steps: Steps[T]) -> T:
        with noting_failed_tries():
            return super().run(steps)


@asynccontextmanager
async def over_psycopg(url: str) -> AsyncIterator[Store]:
    async with AsyncConnectionPool(url, min_size=4, max_size=8, open=False) as pool:
        store = RetoldPostgresStore(pool, deadline=PATIENCE)
        await pool.wait()
        yield store
        await store.aclose()


@asynccontextmanager
async def over_asyncmy(url: str) -> AsyncIterator[Store]:
    engine = create_async_engine(f"mysql+asyncmy://{url}", pool_size=8)
    store = SQLAlchemyStore(engine, owns_engine=True, deadline=PATIENCE)
    store._runner = RetoldRunner("mysql", engine.dialect.paramstyle)
    await store.create_schema()
    yield store
    await store.aclose()


@asynccontextmanager
async def over_pymysql(url: str) -> AsyncIterator[Store]:
    # Without TLS: PyMySQL reads all certificates of the machine for each connection, and here connections are short.
    engine = create_engine(f"mysql+pymysql://{url}", pool_size=8, connect_args={"ssl_disabled": True})
    inner = SyncSQLAlchemyStore(engine, owns_engine=True)
    inner._runner = RetoldRunner("mysql", engine.dialect.paramstyle)
    store = ThreadedStore(inner)
    await anyio.to_thread.run_sync(inner.create_schema)
    yield store
    await store.aclose()


@asynccontextmanager
async def over_django(url: str) -> AsyncIterator[Store]:
    django_project.configure()
    django_project.add_database("mysql", url, alias="line")
    inner = SyncDjangoStore("line")
    inner._connections = RetoldConnections("line")
    store = ThreadedStore(inner)
    await anyio.to_thread.run_sync(inner.create_schema)
    yield store
    await store.aclose()


def random_breaks(rng: random.Random, share: float) -> Iterator[Break | None]:
    while True:
        yield rng.choice(list(Break)) if rng.random() < share else None


async def check_histories(
    line: BreakingProxy, opened: AbstractAsyncContextManager[Store], *, share: float
) -> None:
    """Break the connection at this *share* of all chunks that are sent."""
    async with opened as store:
        line.faults = random_breaks(random.Random(1), share)
        found = await histories(store, seed=3, rounds=12)
        # How many chunks are sent depends on how the callers interleave.
        while any(line.breaks[kind] <= 5 for kind in Break):
            found += await histories(store, seed=len(found), rounds=2)
        line.faults = iter(())
    for history in found:
        history_text = "\n".join(map(repr, history))
        assert is_linearizable(history, resolution=RESOLUTION, separate_clock_read=True), history_text
        assert fences_increase(history), history_text


async def test_histories_over_breaking_connections_to_postgresql_are_linearizable(
    postgres_line: tuple[BreakingProxy, str],
) -> None:
    line, url = postgres_line
    await check_histories(line, over_psycopg(url), share=0.02)


@pytest.mark.parametrize(
    "opened", [over_asyncmy, over_pymysql, over_django], ids=lambda opened: opened.__name__
)
async def test_histories_over_breaking_connections_to_mariadb_are_linearizable(
    mariadb_line: tuple[BreakingProxy, str], opened: Callable[[str], AbstractAsyncContextManager[Store]]
) -> None:
    line, url = mariadb_line
    await check_histories(line, opened(url), share=0.005)  # a call is several round trips
