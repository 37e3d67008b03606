"""The SQLite store: the contract, its records, its clocks, and complete_in."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import time_machine
from store_calls import KEY, acquire, claim

from idempotency import Acquired, Completed, Running
from idempotency.errors import CorruptRecord, IsolationConflict, StoreUnavailable, UnknownRecordVersion
from idempotency.store import Inspectable, Purgeable, Store, SyncInspectable, SyncPurgeable, SyncStore
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore
from idempotency.testing import Clock, FakeClock, StoreContract


class TestSQLiteStoreContract(StoreContract):
    max_examples = 50

    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        with TemporaryDirectory() as directory:
            store = SQLiteStore(Path(directory, "records.db"), clock=clock)
            yield store
            await store.aclose()


class TestSyncSQLiteStoreContract(StoreContract):
    max_examples = 50

    @contextmanager
    def open_store(self, clock: Clock) -> Iterator[SyncStore]:
        with (
            TemporaryDirectory() as directory,
            closing(SyncSQLiteStore(Path(directory, "records.db"), clock=clock)) as store,
        ):
            yield store


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


class TestRecords:
    def test_a_record_of_an_unknown_version_raises_and_is_never_deleted(
        self, store: SyncSQLiteStore, path: Path, clock: FakeClock
    ) -> None:
        claimed = claim(store, retention=1)
        sql(path, "UPDATE idempotency_record SET version = 2")
        clock.advance(1_000)
        for call in (
            lambda: acquire(store),
            lambda: store.renew(claimed, lease=30),
            lambda: store.complete(claimed, b"{}", retention=60),
            lambda: store.release(claimed),
            lambda: store.get(KEY),
        ):
            with pytest.raises(UnknownRecordVersion) as raised:
                call()
            assert KEY not in str(raised.value)
        assert store.purge() == 0
        assert store.scan().records == ()
        assert sql(path, "SELECT count(*) FROM idempotency_record") == [(1,)]

    @pytest.mark.parametrize(
        "damage",
        ["owner = 'text'", "fingerprint = 7", "outcome = x'00'", "completed_at = 5", "lease_until = 'soon'"],
    )
    def test_a_corrupt_record_raises_and_stays_until_it_is_forgotten(
        self, store: SyncSQLiteStore, path: Path, damage: str
    ) -> None:
        claimed = claim(store)
        sql(path, f"UPDATE idempotency_record SET {damage}")
        for call in (lambda: acquire(store), lambda: store.complete(claimed, b"{}", retention=60)):
            with pytest.raises(CorruptRecord):
                call()
        assert store.scan().records == ()
        assert sql(path, "SELECT count(*) FROM idempotency_record") == [(1,)]
        assert store.forget(KEY) is True
        assert isinstance(acquire(store), Acquired)

    def test_a_purge_deletes_only_expired_records_up_to_its_limit(
        self, store: SyncSQLiteStore, path: Path, clock: FakeClock
    ) -> None:
        for number in range(5):
            claim(store, f"abandoned-{number}", lease=1, retention=1)
        claim(store, "alive")
        clock.advance(2)
        assert [store.purge(limit=3), store.purge(limit=3), store.purge(limit=3)] == [3, 2, 0]
        assert sql(path, "SELECT key FROM idempotency_record") == [("alive",)]

    def test_each_completion_deletes_expired_records(
        self, store: SyncSQLiteStore, path: Path, clock: FakeClock
    ) -> None:
        for number in range(30):
            store.complete(claim(store, f"k{number}"), b"{}", retention=1)
            clock.advance(2)
        assert sql(path, "SELECT count(*) FROM idempotency_record") == [(1,)]

    def test_a_scan_lists_live_records_in_key_order(self, store: SyncSQLiteStore, clock: FakeClock) -> None:
        for number in range(7):
            claim(store, f"k{number}")
        claim(store, "expired", lease=1, retention=1)
        clock.advance(2)
        first = store.scan(limit=4)
        second = store.scan(limit=4, cursor=first.cursor)
        third = store.scan(limit=4, cursor=second.cursor)
        assert [record.key for page in (first, second, third) for record in page.records] == [
            f"k{n}" for n in range(7)
        ]
        assert third.cursor is None

    def test_the_fence_rises_in_an_emptied_table_and_in_a_new_file(self, path: Path, tmp_path: Path) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            before = claim(store).fence
            sql(path, "DELETE FROM idempotency_record")
            assert (again := claim(store).fence) > before
        with closing(SyncSQLiteStore(tmp_path / "new.db")) as other:
            assert claim(other).fence > again

    def test_a_missing_fence_counter_refuses_claims(self, store: SyncSQLiteStore, path: Path) -> None:
        sql(path, "DELETE FROM idempotency_record_fence")
        with pytest.raises(StoreUnavailable, match="counter"):
            acquire(store)
        assert store.get(KEY) is None


class TestClocks:
    @pytest.mark.skipif(sys.platform != "linux", reason="the clock since boot is Linux's")
    @pytest.mark.parametrize("hours", [-1, 1, 48])
    def test_a_step_of_the_wall_clock_changes_no_lease(self, path: Path, hours: int) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            claimed = claim(store, lease=60, retention=60)
            with time_machine.travel(datetime.now(UTC) + timedelta(hours=hours)):
                reply = acquire(store)
                assert isinstance(reply, Running)
                assert 59 < reply.lease_left <= 60
                record = store.get(KEY)
                assert record is not None
                assert record.expires_in == pytest.approx(120 - 3600 * hours, abs=1), (
                    "retention counts in wall time"
                )
                assert store.purge() == 0
                assert store.complete(claimed, b"{}", retention=60) is True

    @pytest.mark.skipif(sys.platform != "linux", reason="the clock since boot is Linux's")
    def test_a_lease_from_before_a_reboot_has_lapsed(self, path: Path) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            claimed = claim(store, lease=3600, retention=3600)
            sql(path, "UPDATE idempotency_record SET boot = x'00', lease_until = 1e9")
            record = store.get(KEY)
            assert record is not None
            assert record.lease_left == 0.0
            with time_machine.travel(datetime.now(UTC) + timedelta(hours=1.5)):
                record = store.get(KEY)
                assert record is not None
                assert record.lease_left == pytest.approx(-1800, abs=5), (
                    "by the wall clock, since the boot clock started anew"
                )
            successor = claim(store)
            assert (successor.attempt, store.complete(claimed, b"{}", retention=60)) == (2, False)

    def test_the_owner_can_renew_its_claim_after_a_reboot(self, path: Path) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            claimed = claim(store)
            sql(path, "UPDATE idempotency_record SET boot = x'00', lease_until = 1e9")
            assert store.renew(claimed, lease=30) is True
            reply = acquire(store)
            assert isinstance(reply, Running)
            assert 0 < reply.lease_left <= 30, "the lease from before the reboot no longer counts"

    def test_leases_use_wall_time_where_there_is_no_boot_id(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def absent(path: Path) -> bytes:
            raise FileNotFoundError(path)

        monkeypatch.setattr(Path, "read_bytes", absent)
        with closing(SyncSQLiteStore(path)) as store:
            claim(store, lease=60, retention=60)
            with time_machine.travel(datetime.now(UTC) + timedelta(seconds=61)):
                assert claim(store).attempt == 2


class TestCompleteIn:
    @pytest.fixture
    def app(self, store: SyncSQLiteStore, path: Path) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(path)) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = bytes
            connection.execute("CREATE TABLE charge (amount INTEGER)")
            yield connection

    def test_effect_and_record_are_committed_together(
        self, store: SyncSQLiteStore, app: sqlite3.Connection
    ) -> None:
        claimed = claim(store)
        with app:
            app.execute("INSERT INTO charge VALUES (5)")
            assert store.complete_in(app, claimed, b'{"n":1}', retention=60) is True
        reply = acquire(store)
        assert isinstance(reply, Completed)
        assert reply.outcome == b'{"n":1}'
        assert store.complete(claimed, b'{"n":2}', retention=60) is True

    def test_effect_and_record_are_rolled_back_together(
        self, store: SyncSQLiteStore, app: sqlite3.Connection
    ) -> None:
        claimed = claim(store)
        app.execute("INSERT INTO charge VALUES (5)")
        store.complete_in(app, claimed, b"{}", retention=60)
        app.rollback()
        assert isinstance(acquire(store), Running)
        assert app.execute("SELECT count(*) FROM charge").fetchone()[0] == 0

    def test_complete_in_returns_false_for_a_claim_that_was_taken_over(
        self, store: SyncSQLiteStore, app: sqlite3.Connection, clock: FakeClock
    ) -> None:
        lost = claim(store, lease=1)
        clock.advance(1)
        claim(store)
        app.execute("INSERT INTO charge VALUES (5)")
        assert store.complete_in(app, lost, b"{}", retention=60) is False

    def test_complete_in_without_a_transaction_is_refused(
        self, store: SyncSQLiteStore, app: sqlite3.Connection
    ) -> None:
        with pytest.raises(ValueError, match="transaction"):
            store.complete_in(app, claim(store), b"{}", retention=60)

    def test_complete_in_on_another_file_is_refused(self, store: SyncSQLiteStore, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "other.db")) as other:
            other.execute("CREATE TABLE t (x)")
            other.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(ValueError, match="not to"):
                store.complete_in(other, claim(store), b"{}", retention=60)

    def test_another_claim_after_the_snapshot_raises_isolation_conflict(
        self, store: SyncSQLiteStore, app: sqlite3.Connection
    ) -> None:
        claimed = claim(store)
        app.isolation_level = None
        app.execute("BEGIN")
        app.execute("SELECT count(*) FROM charge").fetchone()
        claim(store, "another")  # commits after the snapshot of `app`
        with pytest.raises(IsolationConflict, match="BEGIN IMMEDIATE"):
            store.complete_in(app, claimed, b"{}", retention=60)


def test_both_stores_are_inspectable_and_purgeable() -> None:
    assert issubclass(SQLiteStore, Inspectable)
    assert issubclass(SQLiteStore, Purgeable)
    assert issubclass(SyncSQLiteStore, SyncInspectable)
    assert issubclass(SyncSQLiteStore, SyncPurgeable)
