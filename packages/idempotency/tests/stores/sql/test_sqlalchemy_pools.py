"""A store may share a pool with the application if the pool gives each of them its own connection."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AssertionPool, NullPool, SingletonThreadPool, StaticPool

from idempotency import Acquired, Fingerprint, Owner, StorageKey
from idempotency.stores.sqlalchemy import SQLAlchemyStore, SyncSQLAlchemyStore
from idempotency.stores.url import open_store, open_sync_store

REFUSED = "would commit what your session has begun"


@pytest.mark.parametrize("pool", [SingletonThreadPool, StaticPool])
def test_a_pool_that_shares_the_sessions_connection_is_refused(pool: type[sa.Pool]) -> None:
    """The store's commit would also commit the session's work, which could not be rolled back any more."""
    engine = sa.create_engine("sqlite://", poolclass=pool)
    with pytest.raises(ValueError, match=REFUSED):
        SyncSQLAlchemyStore(engine)
    engine.dispose()


def test_a_pool_that_shares_the_async_sessions_connection_is_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ValueError, match=REFUSED):
        SQLAlchemyStore(engine)
    engine.sync_engine.dispose()


@pytest.mark.parametrize("path", ["", "/:memory:"])
def test_a_url_of_an_in_memory_database_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path of a file"):
        open_sync_store(f"sqlite+pysqlite://{path}")
    with pytest.raises(ValueError, match="path of a file"):
        open_store(f"sqlite+aiosqlite://{path}")


@pytest.mark.parametrize("pool", [NullPool, AssertionPool])
def test_a_pool_with_a_connection_for_each_call_is_accepted(tmp_path: Path, pool: type[sa.Pool]) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/records.db", poolclass=pool)
    store = SyncSQLAlchemyStore(engine, owns_engine=True)
    store.create_schema()
    reply = store.acquire(
        StorageKey("k"), fingerprint=Fingerprint(b"f" * 32), owner=Owner(b"o" * 16), lease=30, retention=60
    )
    assert isinstance(reply, Acquired)
    store.close()
