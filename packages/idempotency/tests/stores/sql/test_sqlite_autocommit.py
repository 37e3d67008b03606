"""An engine whose SQLite driver commits each statement, so that its own commit() and rollback() do nothing."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from idempotency import Acquired, Completed, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreError
from idempotency.stores.sqlalchemy import SyncSQLAlchemyStore


class Autocommitting(sqlite3.Connection):
    """A connection as `autocommit=True` makes it from Python 3.12 on."""

    def commit(self) -> None:
        """Do nothing."""

    def rollback(self) -> None:
        """Do nothing."""


OPTIONS: dict[str, Any] = (
    {"autocommit": True}
    if sys.version_info >= (3, 12)
    else {"factory": Autocommitting, "isolation_level": None}
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/records.db", connect_args={"timeout": 0.1, **OPTIONS})
    yield engine
    engine.dispose()


def acquire(store: SyncSQLAlchemyStore) -> object:
    return store.acquire(
        StorageKey("k"),
        fingerprint=Fingerprint(b"f" * 32),
        owner=Owner(b"o" * 16),
        lease=30.0,
        retention=60.0,
    )


def test_writes_of_the_store_are_visible_to_other_connections(engine: sa.Engine) -> None:
    store = SyncSQLAlchemyStore(engine)
    store.create_schema()
    reply = acquire(store)
    assert isinstance(reply, Acquired)
    assert store.complete(reply.claim, b"{}", retention=60.0)
    engine.dispose()
    assert isinstance(acquire(store), Completed)


def test_a_failed_call_writes_nothing_and_holds_no_lock(engine: sa.Engine) -> None:
    store = SyncSQLAlchemyStore(engine)
    store.create_schema()
    reply = acquire(store)
    assert isinstance(reply, Acquired)
    with pytest.raises(StoreError, match="will not help"):
        store.complete(reply.claim, object(), retention=60.0)  # type: ignore[arg-type]
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql("ROLLBACK")
    record = store.get(StorageKey("k"))
    assert record is not None
    assert record.outcome is None
