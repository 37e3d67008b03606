"""`complete_in` on SQLite connections of any configuration, and on snapshots that are older than the claim."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, StorageKey
from idempotency.errors import IsolationConflict, StoreError, StoreUnavailable
from idempotency.stores.encrypted import KeyRing, SyncEncryptedStore
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
KEY, OUTCOME = StorageKey("k"), b'{"n":1}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "caller.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE charge (cents INTEGER)")
    return path


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[Any]:
    store: Any = SyncSQLiteStore(path, busy_timeout=0.2)
    if request.param == "encrypted":
        store = SyncEncryptedStore(store, KeyRing({"k": bytes(32)}, current="k"))
    yield store
    store.close()


def claim(store: Any, key: StorageKey = KEY) -> Claim:
    reply = store.acquire(key, owner=Owner(b"o" * 16), **ACQUIRE)
    assert isinstance(reply, Acquired)
    return reply.claim


class UnusableConnection(sqlite3.Connection):
    """A connection class whose own `cursor` and `execute` cannot be used."""

    def cursor(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("an application's cursor")

    def execute(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("an application's execute")


def dict_factory(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {name[0]: value for name, value in zip(cursor.description, row, strict=True)}


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "rows by name": {"row_factory": sqlite3.Row},
    "rows as dicts": {"row_factory": dict_factory},
    "rows as nothing": {"row_factory": lambda *_: None},
    "text as bytes": {"text_factory": bytes},
    "text as something": {"text_factory": lambda data: ("text", data)},
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_complete_in_works_with_any_row_and_text_factory(
    store: Any, path: Path, configuration: dict[str, Any]
) -> None:
    granted = claim(store)
    with closing(sqlite3.connect(path)) as caller:
        for name, value in configuration.items():
            setattr(caller, name, value)
        with caller:
            caller.execute("INSERT INTO charge VALUES (1)")
            assert store.complete_in(caller, granted, OUTCOME, retention=60.0) is True
            # A claim has one effect.
            assert store.complete_in(caller, granted, b'{"n":2}', retention=60.0) is False
    assert store.get(KEY).outcome == OUTCOME


@pytest.mark.parametrize("level", [None, "DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
def test_complete_in_works_with_every_isolation_level_of_sqlite3(store: Any, path: Path, level: Any) -> None:
    granted = claim(store)
    with closing(sqlite3.connect(path, isolation_level=level)) as caller:
        if level is None:
            caller.execute("BEGIN")
        caller.execute("INSERT INTO charge VALUES (1)")
        assert store.complete_in(caller, granted, OUTCOME, retention=60.0) is True
        caller.commit()
    assert isinstance(store.acquire(KEY, owner=Owner(b"x" * 16), **ACQUIRE), Completed)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the attribute came with 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
def test_complete_in_is_refused_with_autocommit_and_works_without(
    store: Any, path: Path, autocommit: bool
) -> None:
    granted = claim(store)
    with closing(sqlite3.connect(path, autocommit=autocommit)) as caller:
        caller.execute("INSERT INTO charge VALUES (1)")
        if autocommit:
            with pytest.raises(ValueError, match="transaction"):
                store.complete_in(caller, granted, OUTCOME, retention=60.0)
        else:
            assert store.complete_in(caller, granted, OUTCOME, retention=60.0) is True
            caller.commit()


def test_complete_in_works_on_a_subclass_whose_methods_raise(store: Any, path: Path) -> None:
    granted = claim(store)
    with closing(sqlite3.connect(path, factory=UnusableConnection)) as caller:
        sqlite3.Cursor(caller).execute("INSERT INTO charge VALUES (1)")
        assert store.complete_in(caller, granted, OUTCOME, retention=60.0) is True
        caller.commit()


def test_complete_in_works_with_converters_of_the_application(store: Any, path: Path) -> None:
    for declared in ("INTEGER", "BLOB", "REAL", "TEXT"):
        sqlite3.register_converter(declared, lambda data: ("converted", data))
    try:
        granted = claim(store)
        with closing(sqlite3.connect(path, detect_types=sqlite3.PARSE_DECLTYPES)) as caller, caller:
            caller.execute("INSERT INTO charge VALUES (1)")
            assert store.complete_in(caller, granted, OUTCOME, retention=60.0) is True
    finally:
        for declared in ("INTEGER", "BLOB", "REAL", "TEXT"):
            sqlite3.converters.pop(declared, None)


class TestSnapshots:
    """A transaction that began to read before the claim was made can no longer write: SQLITE_BUSY_SNAPSHOT."""

    def test_a_claim_made_after_the_snapshot_raises_isolation_conflict_with_advice(
        self, store: Any, path: Path
    ) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as caller:
            caller.execute("BEGIN")
            caller.execute("SELECT * FROM charge").fetchall()
            granted = claim(store)
            with pytest.raises(IsolationConflict, match="BEGIN IMMEDIATE") as caught:
                store.complete_in(caller, granted, OUTCOME, retention=60.0)
            assert not isinstance(caught.value, StoreUnavailable)
            caller.execute("ROLLBACK")
            caller.execute("BEGIN IMMEDIATE")
            assert store.complete_in(caller, granted, OUTCOME, retention=60.0) is True
            caller.execute("COMMIT")

    def test_a_renewal_after_the_snapshot_raises_isolation_conflict(self, store: Any, path: Path) -> None:
        granted = claim(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as caller:
            caller.execute("BEGIN")
            caller.execute("SELECT * FROM charge").fetchall()
            assert store.renew(granted, lease=60.0)
            with pytest.raises(IsolationConflict):
                store.complete_in(caller, granted, OUTCOME, retention=60.0)
            caller.execute("ROLLBACK")

    def test_a_forget_after_a_snapshot_with_the_completed_record_raises_isolation_conflict(
        self, store: Any, path: Path
    ) -> None:
        """The record was forgotten since then, and the key may have another owner."""
        granted = claim(store)
        assert store.complete(granted, OUTCOME, retention=60.0)
        with closing(sqlite3.connect(path, isolation_level=None)) as caller:
            caller.execute("BEGIN")
            caller.execute("SELECT * FROM charge").fetchall()
            assert store.forget(KEY)
            with pytest.raises(IsolationConflict):
                store.complete_in(caller, granted, OUTCOME, retention=60.0)
            caller.execute("ROLLBACK")

    def test_a_concurrent_writer_raises_store_unavailable_and_not_isolation_conflict(
        self, store: Any, path: Path
    ) -> None:
        granted = claim(store)
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as caller:
            caller.execute("BEGIN")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnavailable, match="locked"):
                    store.complete_in(caller, granted, OUTCOME, retention=60.0)
            caller.execute("ROLLBACK")

    def test_complete_in_returns_false_for_a_lost_claim(self, store: Any, path: Path) -> None:
        granted = claim(store)
        store.forget(KEY)
        with closing(sqlite3.connect(path)) as caller, caller:
            caller.execute("INSERT INTO charge VALUES (1)")
            assert store.complete_in(caller, granted, OUTCOME, retention=60.0) is False


class TestPermanentErrors:
    """A failure that repeating cannot solve is not reported as transient."""

    def test_a_closed_connection_raises_a_permanent_store_error(self, store: Any, path: Path) -> None:
        granted = claim(store)
        caller = sqlite3.connect(path)
        caller.close()
        with pytest.raises(StoreError) as caught:
            store.complete_in(caller, granted, OUTCOME, retention=60.0)
        assert not isinstance(caught.value, StoreUnavailable)

    def test_a_connection_whose_authorizer_denies_raises_a_permanent_store_error(
        self, store: Any, path: Path
    ) -> None:
        granted = claim(store)
        with closing(sqlite3.connect(path)) as caller, caller:
            caller.execute("INSERT INTO charge VALUES (1)")
            caller.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
            with pytest.raises(StoreError) as caught:
                store.complete_in(caller, granted, OUTCOME, retention=60.0)
            caller.set_authorizer(None)
        assert not isinstance(caught.value, StoreUnavailable)

    @pytest.mark.parametrize("connection", [None, "caller.db", object(), 5])
    def test_the_error_for_an_unsupported_object_lists_the_supported_connections(
        self, store: Any, connection: Any
    ) -> None:
        with pytest.raises(TypeError, match=r"sqlite3\.Connection.*Session.*Django"):
            store.complete_in(connection, claim(store), OUTCOME, retention=60.0)


def test_the_async_store_raises_isolation_conflict_and_completes_after_begin_immediate(path: Path) -> None:
    import asyncio

    async def main() -> None:
        store = SQLiteStore(path)
        reply = await store.acquire(KEY, owner=Owner(b"o" * 16), **ACQUIRE)
        with closing(sqlite3.connect(path, isolation_level=None)) as caller:
            caller.execute("BEGIN")
            caller.execute("SELECT * FROM charge").fetchall()
            assert await store.renew(reply.claim, lease=60.0)
            with pytest.raises(IsolationConflict):
                store.complete_in(caller, reply.claim, OUTCOME, retention=60.0)
            caller.execute("ROLLBACK")
            caller.execute("BEGIN IMMEDIATE")
            assert store.complete_in(caller, reply.claim, OUTCOME, retention=60.0) is True
            caller.execute("COMMIT")
        await store.aclose()

    asyncio.run(main())
