"""The file of a SQLite store: created once, never replaced, and refused where it cannot be trusted."""

from __future__ import annotations

import functools
import math
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from store_calls import KEY, acquire, claim

from idempotency import Acquired, Completed
from idempotency.errors import StoreError, StoreUnavailable
from idempotency.stores.sqlite import SyncSQLiteStore, file
from idempotency.testing import FakeClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(path: Path, clock: FakeClock) -> Iterator[SyncSQLiteStore]:
    with closing(SyncSQLiteStore(path, clock=clock, busy_timeout=0.05)) as store:
        yield store


def sql(path: Path, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


class TestFile:
    def test_the_file_is_created_on_first_use_and_reopened(self, path: Path, clock: FakeClock) -> None:
        with closing(SyncSQLiteStore(path, clock=clock)) as first:
            first.complete(claim(first), b"{}", retention=60)
        with closing(SyncSQLiteStore(path, clock=clock)) as second:
            assert isinstance(acquire(second), Completed)

    def test_synchronous_is_full_unless_set_otherwise(self, store: SyncSQLiteStore, path: Path) -> None:
        def settings(connection: sqlite3.Connection) -> list[object]:
            return [
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")
            ]

        assert store._file.run(settings) == [2, "wal"]
        with closing(SyncSQLiteStore(path, synchronous="NORMAL")) as relaxed:
            assert relaxed._file.run(settings) == [1, "wal"]

    @pytest.mark.parametrize("damage", ["delete", "replace", "directory"])
    def test_a_deleted_or_replaced_file_raises_store_unavailable_and_is_not_created_again(
        self, store: SyncSQLiteStore, path: Path, damage: str
    ) -> None:
        claim(store)
        if damage == "directory":
            path.parent.rename(path.parent.with_name("elsewhere"))
        else:
            path.unlink()
        if damage == "replace":
            sql(path, "CREATE TABLE idempotency_record (key)")
        with pytest.raises(StoreUnavailable, match="deleted or replaced"):
            acquire(store)
        assert path.exists() == (damage == "replace")

    def test_a_file_that_is_moved_back_is_used_again(self, store: SyncSQLiteStore, path: Path) -> None:
        claimed = claim(store)
        away = path.with_name("away.db")
        path.rename(away)
        with pytest.raises(StoreUnavailable):
            store.renew(claimed, lease=30)
        away.rename(path)
        assert store.renew(claimed, lease=30) is True

    def test_the_error_for_a_missing_directory_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="directory exists"):
            SyncSQLiteStore(tmp_path / "nowhere" / "records.db")

    def test_a_file_of_another_kind_is_refused(self, path: Path) -> None:
        path.write_bytes(secrets.token_bytes(8192))
        with pytest.raises(StoreUnavailable, match="not a SQLite database"):
            SyncSQLiteStore(path)

    def test_a_damaged_file_raises_store_unavailable_and_is_left_unchanged(
        self, store: SyncSQLiteStore, path: Path
    ) -> None:
        for number in range(50):
            claim(store, f"k{number}")
        store.close()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(secrets.token_bytes(path.stat().st_size - 4096))
        before = path.read_bytes()
        with pytest.raises(StoreUnavailable), closing(SyncSQLiteStore(path)) as reopened:
            acquire(reopened, "k7")
        assert path.read_bytes() == before

    def test_a_full_database_raises_store_unavailable_and_the_connection_stays_usable(
        self, store: SyncSQLiteStore
    ) -> None:
        claimed = claim(store)
        pages = store._file.run(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        store._file.run(lambda c: c.execute(f"PRAGMA max_page_count={pages}"))
        with pytest.raises(StoreUnavailable, match="disk is full"):
            store.complete(claimed, b"x" * 100_000, retention=60)
        assert store.get(KEY) is not None
        assert store.complete(claimed, b"{}", retention=60) is True, "the connection must be usable again"

    def test_a_read_only_file_raises_store_unavailable(self, store: SyncSQLiteStore) -> None:
        store._file.run(lambda c: c.execute("PRAGMA query_only=ON"))
        with pytest.raises(StoreUnavailable, match="read-only"):
            acquire(store)

    def test_the_error_of_a_closed_store_says_so(self, store: SyncSQLiteStore) -> None:
        store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            acquire(store)

    def test_a_network_file_system_is_refused_before_a_file_is_created(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(file, "_file_system", lambda path: "nfs4")
        with pytest.raises(StoreError, match="network file system"):
            SyncSQLiteStore(tmp_path / "records.db")
        assert not list(tmp_path.iterdir())

    def test_the_file_system_is_that_of_the_innermost_mount(self, tmp_path: Path) -> None:
        mounts = tmp_path / "mountinfo"
        share = tmp_path / "a share"
        share.mkdir()
        mounts.write_text(
            "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n"
            f"30 22 0:40 / {str(share).replace(' ', chr(92) + '040')} rw - nfs4 host:/share rw\n"
        )
        assert file._file_system(share / "records.db", mounts) == "nfs4"
        assert file._file_system(tmp_path / "records.db", mounts) == "ext4"
        assert file._file_system(tmp_path, tmp_path / "absent") is None

    @pytest.mark.parametrize("table", ["", "a b", "a;drop", "sqlite_x", "1a", "é", "a" * 64])
    def test_a_table_name_that_is_no_identifier_is_refused(self, path: Path, table: str) -> None:
        with pytest.raises(ValueError, match="identifier"):
            SyncSQLiteStore(path, table=table)

    def test_an_unknown_value_of_synchronous_is_refused(self, path: Path) -> None:
        with pytest.raises(ValueError, match="synchronous"):
            SyncSQLiteStore(path, synchronous="full; DROP TABLE x")

    @pytest.mark.parametrize("seconds", [-1, 1e10, math.inf, math.nan])
    def test_a_busy_timeout_that_sqlite_cannot_keep_is_refused(self, path: Path, seconds: float) -> None:
        with pytest.raises(ValueError, match="busy_timeout"):
            SyncSQLiteStore(path, busy_timeout=seconds)

    def test_a_table_with_other_columns_is_refused(self, path: Path) -> None:
        sql(path, "CREATE TABLE idempotency_record (key TEXT, expires_at REAL)")
        with pytest.raises(StoreError, match="another table"):
            SyncSQLiteStore(path)

    def test_a_file_that_refuses_wal_is_refused(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Refusing(sqlite3.Connection):
            def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
                return super().execute(sql.replace("journal_mode=WAL", "journal_mode"), *parameters)  # type: ignore[arg-type]

        connect = functools.partial(sqlite3.connect, factory=Refusing)
        monkeypatch.setattr(sqlite3, "connect", connect)
        with pytest.raises(StoreError, match="journal mode 'delete'"):
            SyncSQLiteStore(path)

    def test_a_sqlite_version_without_returning_is_refused(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
        with pytest.raises(StoreError, match="too old"):
            SyncSQLiteStore(path)

    def test_opening_waits_for_another_process_that_locks_the_new_file(self, path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("CREATE TABLE t (x)")
            other.execute("BEGIN EXCLUSIVE")
            release = threading.Timer(0.05, other.execute, ["COMMIT"])
            release.start()
            with closing(SyncSQLiteStore(path)) as store:
                assert isinstance(acquire(store), Acquired)
            release.join()

    def test_errors_do_not_show_the_key_and_have_sqlites_error_as_cause(
        self, store: SyncSQLiteStore, path: Path
    ) -> None:
        sql(path, "DROP TABLE idempotency_record")
        with pytest.raises(StoreUnavailable, match="SQLITE_ERROR") as raised:
            acquire(store)
        assert KEY not in str(raised.value)
        assert isinstance(raised.value.__cause__, sqlite3.OperationalError)

    def test_two_tables_in_one_file_are_two_stores(self, path: Path) -> None:
        with (
            closing(SyncSQLiteStore(path, table="a")) as one,
            closing(SyncSQLiteStore(path, table="b")) as two,
        ):
            claim(one)
            assert isinstance(acquire(two), Acquired)
