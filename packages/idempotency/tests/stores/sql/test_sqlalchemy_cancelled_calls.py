"""A call whose caller is cancelled leaves no lock in a SQLite file, where it would stop every other writer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import aiosqlite
import pytest
from patience import PATIENCE
from sqlalchemy.ext.asyncio import create_async_engine

from idempotency import Acquired, Fingerprint, Owner, Running, StorageKey
from idempotency.stores.sqlalchemy import SQLAlchemyStore

pytestmark = pytest.mark.anyio

KEY = StorageKey("k")
HALF_DONE = "RETURNING"  # of the statement that draws the fence: it is executed, and its row is not read yet


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLAlchemyStore]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/records.db")
    store = SQLAlchemyStore(engine, owns_engine=True, deadline=PATIENCE)
    await store.create_schema()
    yield store
    await store.aclose()


async def acquire(store: SQLAlchemyStore, owner: bytes) -> object:
    return await store.acquire(
        KEY, fingerprint=Fingerprint(b"f" * 32), owner=Owner(owner * 16), lease=PATIENCE, retention=PATIENCE
    )


async def cancel_half_way(store: SQLAlchemyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel a caller of `acquire` between the execution of a statement and the reading of its row."""
    execute = aiosqlite.Cursor.execute

    async def then_cancel(self: aiosqlite.Cursor, sql: str, *values: object) -> aiosqlite.Cursor:
        cursor: aiosqlite.Cursor = await execute(self, sql, *values)  # type: ignore[arg-type]
        if HALF_DONE in sql:
            caller.cancel()
            await asyncio.wait({caller})
        return cursor

    with monkeypatch.context() as patched:
        patched.setattr(aiosqlite.Cursor, "execute", then_cancel)
        caller = asyncio.ensure_future(acquire(store, b"a"))
        await asyncio.wait({caller})
    assert caller.cancelled()


async def test_a_cancelled_caller_leaves_no_lock_in_the_file(
    store: SQLAlchemyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        connection = sqlite3.connect(tmp_path / "records.db", timeout=PATIENCE)
        connection.execute("BEGIN IMMEDIATE")
        connection.close()

    await cancel_half_way(store, monkeypatch)
    await asyncio.to_thread(write)  # with the lock left behind: "database is locked"
    assert isinstance(await acquire(store, b"a"), Acquired)


async def test_a_call_that_has_begun_ends_though_its_caller_is_cancelled(
    store: SQLAlchemyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a lost answer, its effect counts (R8)."""
    await cancel_half_way(store, monkeypatch)
    assert isinstance(await acquire(store, b"b"), Running)


async def test_a_call_that_has_no_connection_yet_ends_with_its_caller(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/records.db", pool_size=1, max_overflow=0)
    store = SQLAlchemyStore(engine, owns_engine=True, deadline=PATIENCE)
    await store.create_schema()
    async with engine.connect():  # the only connection
        caller = asyncio.ensure_future(acquire(store, b"a"))
        await asyncio.wait({caller}, timeout=0.05)  # it waits for the pool
        caller.cancel()
        await asyncio.wait({caller})
    assert caller.cancelled()
    assert await store.get(KEY) is None
    await store.aclose()
