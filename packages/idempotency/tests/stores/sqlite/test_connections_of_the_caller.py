"""`complete_in` on a SQLite connection with habits of its own, and on snapshots that are older than the claim."""

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

ASK: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
KEY, OUTCOME = StorageKey("k"), b'{"n":1}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
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


def claimed(store: Any, key: StorageKey = KEY) -> Claim:
    reply = store.acquire(key, owner=Owner(b"o" * 16), **ASK)
    assert isinstance(reply, Acquired)
    return reply.claim


class Stubborn(sqlite3.Connection):
    """A factory whose cursors and shortcuts give nothing back that the store could use."""

    def cursor(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("an application's cursor")

    def execute(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("an application's execute")


def dict_factory(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {name[0]: value for name, value in zip(cursor.description, row, strict=True)}


HABITS: dict[str, dict[str, Any]] = {
    "rows by name": {"row_factory": sqlite3.Row},
    "rows as dicts": {"row_factory": dict_factory},
    "rows as nothing": {"row_factory": lambda *_: None},
    "text as bytes": {"text_factory": bytes},
    "text as something": {"text_factory": lambda data: ("text", data)},
}


@pytest.mark.parametrize("habits", HABITS.values(), ids=HABITS)
def test_rows_and_text_of_any_make_do(store: Any, path: Path, habits: dict[str, Any]) -> None:
    granted = claimed(store)
    with closing(sqlite3.connect(path)) as shop:
        for name, value in habits.items():
            setattr(shop, name, value)
        with shop:
            shop.execute("INSERT INTO charge VALUES (1)")
            assert store.complete_in(shop, granted, OUTCOME, retention=60.0) is True
            assert store.complete_in(shop, granted, b'{"n":2}', retention=60.0) is False  # one effect a claim
    assert store.get(KEY).outcome == OUTCOME


@pytest.mark.parametrize("level", [None, "DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
def test_every_isolation_level_of_the_module_does(store: Any, path: Path, level: Any) -> None:
    granted = claimed(store)
    with closing(sqlite3.connect(path, isolation_level=level)) as shop:
        if level is None:
            shop.execute("BEGIN")
        shop.execute("INSERT INTO charge VALUES (1)")
        assert store.complete_in(shop, granted, OUTCOME, retention=60.0) is True
        shop.commit()
    assert isinstance(store.acquire(KEY, owner=Owner(b"x" * 16), **ASK), Completed)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the attribute came with 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit_is_refused_and_its_opposite_does(store: Any, path: Path, autocommit: bool) -> None:
    granted = claimed(store)
    with closing(sqlite3.connect(path, autocommit=autocommit)) as shop:
        shop.execute("INSERT INTO charge VALUES (1)")
        if autocommit:
            with pytest.raises(ValueError, match="transaction"):
                store.complete_in(shop, granted, OUTCOME, retention=60.0)
        else:
            assert store.complete_in(shop, granted, OUTCOME, retention=60.0) is True
            shop.commit()


def test_a_connection_of_a_class_of_its_own_does(store: Any, path: Path) -> None:
    granted = claimed(store)
    with closing(sqlite3.connect(path, factory=Stubborn)) as shop:
        sqlite3.Cursor(shop).execute("INSERT INTO charge VALUES (1)")
        assert store.complete_in(shop, granted, OUTCOME, retention=60.0) is True
        shop.commit()


def test_converters_of_the_application_change_nothing(store: Any, path: Path) -> None:
    for declared in ("INTEGER", "BLOB", "REAL", "TEXT"):
        sqlite3.register_converter(declared, lambda data: ("converted", data))
    try:
        granted = claimed(store)
        with closing(sqlite3.connect(path, detect_types=sqlite3.PARSE_DECLTYPES)) as shop, shop:
            shop.execute("INSERT INTO charge VALUES (1)")
            assert store.complete_in(shop, granted, OUTCOME, retention=60.0) is True
    finally:
        for declared in ("INTEGER", "BLOB", "REAL", "TEXT"):
            sqlite3.converters.pop(declared, None)


class TestSnapshots:
    """A transaction that began to read before the claim was made cannot write any more: SQLITE_BUSY_SNAPSHOT."""

    def test_a_snapshot_older_than_the_claim_is_one_error_that_says_what_to_do(
        self, store: Any, path: Path
    ) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as shop:
            shop.execute("BEGIN")
            shop.execute("SELECT * FROM charge").fetchall()
            granted = claimed(store)
            with pytest.raises(IsolationConflict, match="BEGIN IMMEDIATE") as caught:
                store.complete_in(shop, granted, OUTCOME, retention=60.0)
            assert not isinstance(caught.value, StoreUnavailable)
            shop.execute("ROLLBACK")
            shop.execute("BEGIN IMMEDIATE")
            assert store.complete_in(shop, granted, OUTCOME, retention=60.0) is True
            shop.execute("COMMIT")

    def test_a_renewal_after_the_snapshot_is_the_same(self, store: Any, path: Path) -> None:
        granted = claimed(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as shop:
            shop.execute("BEGIN")
            shop.execute("SELECT * FROM charge").fetchall()
            assert store.renew(granted, lease=60.0)
            with pytest.raises(IsolationConflict):
                store.complete_in(shop, granted, OUTCOME, retention=60.0)
            shop.execute("ROLLBACK")

    def test_a_snapshot_in_which_the_record_is_done_is_no_reason_to_say_yes(
        self, store: Any, path: Path
    ) -> None:
        """The record was forgotten since, and may be somebody else's."""
        granted = claimed(store)
        assert store.complete(granted, OUTCOME, retention=60.0)
        with closing(sqlite3.connect(path, isolation_level=None)) as shop:
            shop.execute("BEGIN")
            shop.execute("SELECT * FROM charge").fetchall()
            assert store.forget(KEY)
            with pytest.raises(IsolationConflict):
                store.complete_in(shop, granted, OUTCOME, retention=60.0)
            shop.execute("ROLLBACK")

    def test_a_writer_in_the_way_is_still_only_busy(self, store: Any, path: Path) -> None:
        granted = claimed(store)
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as shop:
            shop.execute("BEGIN")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnavailable, match="locked"):
                    store.complete_in(shop, granted, OUTCOME, retention=60.0)
            shop.execute("ROLLBACK")

    def test_a_claim_that_is_truly_lost_is_false(self, store: Any, path: Path) -> None:
        granted = claimed(store)
        store.forget(KEY)
        with closing(sqlite3.connect(path)) as shop, shop:
            shop.execute("INSERT INTO charge VALUES (1)")
            assert store.complete_in(shop, granted, OUTCOME, retention=60.0) is False


class TestMisfits:
    """A failure that no repeat can cure is not called transient."""

    def test_a_connection_that_is_closed(self, store: Any, path: Path) -> None:
        granted = claimed(store)
        shop = sqlite3.connect(path)
        shop.close()
        with pytest.raises(StoreError) as caught:
            store.complete_in(shop, granted, OUTCOME, retention=60.0)
        assert not isinstance(caught.value, StoreUnavailable)

    def test_a_connection_that_may_not(self, store: Any, path: Path) -> None:
        granted = claimed(store)
        with closing(sqlite3.connect(path)) as shop, shop:
            shop.execute("INSERT INTO charge VALUES (1)")
            shop.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
            with pytest.raises(StoreError) as caught:
                store.complete_in(shop, granted, OUTCOME, retention=60.0)
            shop.set_authorizer(None)
        assert not isinstance(caught.value, StoreUnavailable)

    @pytest.mark.parametrize("connection", [None, "shop.db", object(), 5])
    def test_any_other_object_than_a_connection_is_a_type_error_that_lists_the_kinds(
        self, store: Any, connection: Any
    ) -> None:
        with pytest.raises(TypeError, match=r"sqlite3\.Connection.*Session.*Django"):
            store.complete_in(connection, claimed(store), OUTCOME, retention=60.0)


def test_the_store_of_an_event_loop_does_the_same(path: Path) -> None:
    import asyncio

    async def main() -> None:
        store = SQLiteStore(path)
        reply = await store.acquire(KEY, owner=Owner(b"o" * 16), **ASK)
        with closing(sqlite3.connect(path, isolation_level=None)) as shop:
            shop.execute("BEGIN")
            shop.execute("SELECT * FROM charge").fetchall()
            assert await store.renew(reply.claim, lease=60.0)
            with pytest.raises(IsolationConflict):
                store.complete_in(shop, reply.claim, OUTCOME, retention=60.0)
            shop.execute("ROLLBACK")
            shop.execute("BEGIN IMMEDIATE")
            assert store.complete_in(shop, reply.claim, OUTCOME, retention=60.0) is True
            shop.execute("COMMIT")
        await store.aclose()

    asyncio.run(main())
