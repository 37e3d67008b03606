"""The SQLite store: the contract, and what is its own: files, processes, clocks, transactions shared with an effect."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import time_machine

from idempotency._core.types import Acquired, Claim, Completed, Fingerprint, Owner, Reply, Running, StorageKey
from idempotency.errors import CorruptRecord, StoreError, StoreUnavailable, UnknownRecordVersion
from idempotency.store import Inspectable, Purgeable, Store, SyncInspectable, SyncPurgeable, SyncStore
from idempotency.stores import _sqlite_file
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore
from idempotency.testing import Clock, FakeClock, StoreContract

KEY = StorageKey("order-1")
FINGERPRINT = Fingerprint(b"f" * 32)


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


def acquire(store: SyncStore, key: str = KEY, *, lease: float = 30.0, retention: float = 60.0) -> Reply:
    return store.acquire(
        StorageKey(key),
        fingerprint=FINGERPRINT,
        owner=Owner(secrets.token_bytes(16)),
        lease=lease,
        retention=retention,
    )


def claim(store: SyncStore, key: str = KEY, *, lease: float = 30.0, retention: float = 60.0) -> Claim:
    reply = acquire(store, key, lease=lease, retention=retention)
    assert isinstance(reply, Acquired)
    return reply.claim


def sql(path: Path, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


class TestFile:
    def test_the_file_is_made_on_first_use_and_found_again(self, path: Path, clock: FakeClock) -> None:
        with closing(SyncSQLiteStore(path, clock=clock)) as first:
            first.complete(claim(first), b"{}", retention=60)
        with closing(SyncSQLiteStore(path, clock=clock)) as second:
            assert isinstance(acquire(second), Completed)

    def test_every_commit_is_synced_unless_told_otherwise(self, store: SyncSQLiteStore, path: Path) -> None:
        def settings(connection: sqlite3.Connection) -> list[object]:
            return [
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")
            ]

        assert store._file.run(settings) == [2, "wal"]
        with closing(SyncSQLiteStore(path, synchronous="NORMAL")) as relaxed:
            assert relaxed._file.run(settings) == [1, "wal"]

    @pytest.mark.parametrize("damage", ["delete", "replace", "directory"])
    def test_a_file_that_is_gone_is_never_made_anew(
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

    def test_a_file_that_is_put_back_is_used_again(self, store: SyncSQLiteStore, path: Path) -> None:
        held = claim(store)
        away = path.with_name("away.db")
        path.rename(away)
        with pytest.raises(StoreUnavailable):
            store.renew(held, lease=30)
        away.rename(path)
        assert store.renew(held, lease=30) is True

    def test_a_missing_directory_is_named_as_such(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="directory exists"):
            SyncSQLiteStore(tmp_path / "nowhere" / "records.db")

    def test_a_file_of_another_kind_is_refused(self, path: Path) -> None:
        path.write_bytes(secrets.token_bytes(8192))
        with pytest.raises(StoreUnavailable, match="not a SQLite database"):
            SyncSQLiteStore(path)

    def test_a_damaged_file_is_unavailable_and_left_alone(self, store: SyncSQLiteStore, path: Path) -> None:
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

    def test_a_full_disk_is_unavailable_and_nothing_is_claimed(self, store: SyncSQLiteStore) -> None:
        held = claim(store)
        pages = store._file.run(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        store._file.run(lambda c: c.execute(f"PRAGMA max_page_count={pages}"))
        with pytest.raises(StoreUnavailable, match="disk is full"):
            store.complete(held, b"x" * 100_000, retention=60)
        assert store.get(KEY) is not None
        assert store.complete(held, b"{}", retention=60) is True, "the connection must be usable again"

    def test_a_read_only_file_is_unavailable(self, store: SyncSQLiteStore) -> None:
        store._file.run(lambda c: c.execute("PRAGMA query_only=ON"))
        with pytest.raises(StoreUnavailable, match="read-only"):
            acquire(store)

    def test_a_closed_store_says_so(self, store: SyncSQLiteStore) -> None:
        store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            acquire(store)

    def test_a_network_file_system_is_refused_before_a_file_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sqlite_file, "_file_system", lambda path: "nfs4")
        with pytest.raises(StoreError, match="network file system"):
            SyncSQLiteStore(tmp_path / "records.db")
        assert not list(tmp_path.iterdir())

    def test_the_file_system_is_read_from_the_innermost_mount(self, tmp_path: Path) -> None:
        mounts = tmp_path / "mountinfo"
        share = tmp_path / "a share"
        share.mkdir()
        mounts.write_text(
            "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n"
            f"30 22 0:40 / {str(share).replace(' ', chr(92) + '040')} rw - nfs4 host:/share rw\n"
        )
        assert _sqlite_file._file_system(share / "records.db", mounts) == "nfs4"
        assert _sqlite_file._file_system(tmp_path / "records.db", mounts) == "ext4"
        assert _sqlite_file._file_system(tmp_path, tmp_path / "absent") is None

    @pytest.mark.parametrize("table", ["", "a b", "a;drop", "sqlite_x", "1a", "é", "a" * 64])
    def test_a_table_name_is_an_identifier(self, path: Path, table: str) -> None:
        with pytest.raises(ValueError, match="identifier"):
            SyncSQLiteStore(path, table=table)

    def test_synchronous_is_one_of_sqlites_own_words(self, path: Path) -> None:
        with pytest.raises(ValueError, match="synchronous"):
            SyncSQLiteStore(path, synchronous="full; DROP TABLE x")

    def test_a_table_of_other_columns_is_refused(self, path: Path) -> None:
        sql(path, "CREATE TABLE idempotency_record (key TEXT, expires_at REAL)")
        with pytest.raises(StoreError, match="another table"):
            SyncSQLiteStore(path)

    def test_two_tables_in_one_file_are_two_stores(self, path: Path) -> None:
        with (
            closing(SyncSQLiteStore(path, table="a")) as one,
            closing(SyncSQLiteStore(path, table="b")) as two,
        ):
            claim(one)
            assert isinstance(acquire(two), Acquired)


class TestRecords:
    def test_an_unknown_version_is_neither_run_nor_deleted(
        self, store: SyncSQLiteStore, path: Path, clock: FakeClock
    ) -> None:
        held = claim(store, retention=1)
        sql(path, "UPDATE idempotency_record SET version = 2")
        clock.advance(1_000)
        for call in (
            lambda: acquire(store),
            lambda: store.renew(held, lease=30),
            lambda: store.complete(held, b"{}", retention=60),
            lambda: store.release(held),
            lambda: store.get(KEY),
        ):
            with pytest.raises(UnknownRecordVersion) as raised:
                call()
            assert KEY not in str(raised.value)
        assert store.purge() == 0
        assert sql(path, "SELECT count(*) FROM idempotency_record") == [(1,)]

    @pytest.mark.parametrize(
        "damage",
        ["owner = 'text'", "fingerprint = 7", "outcome = x'00'", "completed_at = 5", "lease_until = 'soon'"],
    )
    def test_an_unreadable_record_is_neither_run_nor_deleted(
        self, store: SyncSQLiteStore, path: Path, damage: str
    ) -> None:
        held = claim(store)
        sql(path, f"UPDATE idempotency_record SET {damage}")
        for call in (lambda: acquire(store), lambda: store.complete(held, b"{}", retention=60)):
            with pytest.raises(CorruptRecord):
                call()
        assert store.scan().records == ()
        assert sql(path, "SELECT count(*) FROM idempotency_record") == [(1,)]
        assert store.forget(KEY) is True
        assert isinstance(acquire(store), Acquired)

    def test_expired_records_are_deleted_by_purge_up_to_its_limit(
        self, store: SyncSQLiteStore, path: Path, clock: FakeClock
    ) -> None:
        for number in range(5):
            claim(store, f"abandoned-{number}", lease=1, retention=1)
        claim(store, "alive")
        clock.advance(2)
        assert [store.purge(limit=3), store.purge(limit=3), store.purge(limit=3)] == [3, 2, 0]
        assert sql(path, "SELECT key FROM idempotency_record") == [("alive",)]

    def test_each_complete_deletes_a_few_expired_records(
        self, store: SyncSQLiteStore, path: Path, clock: FakeClock
    ) -> None:
        for number in range(30):
            store.complete(claim(store, f"k{number}"), b"{}", retention=1)
            clock.advance(2)
        assert sql(path, "SELECT count(*) FROM idempotency_record") == [(1,)]

    def test_a_scan_pages_through_the_live_records_in_key_order(
        self, store: SyncSQLiteStore, clock: FakeClock
    ) -> None:
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

    def test_the_fence_rises_past_an_emptied_table_and_past_a_new_file(
        self, path: Path, tmp_path: Path
    ) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            before = claim(store).fence
            sql(path, "DELETE FROM idempotency_record")
            assert (again := claim(store).fence) > before
        with closing(SyncSQLiteStore(tmp_path / "new.db")) as other:
            assert claim(other).fence > again

    def test_a_lost_counter_stops_new_claims(self, store: SyncSQLiteStore, path: Path) -> None:
        sql(path, "DELETE FROM idempotency_record_fence")
        with pytest.raises(StoreUnavailable, match="counter"):
            acquire(store)
        assert store.get(KEY) is None


class TestClocks:
    @pytest.mark.skipif(sys.platform != "linux", reason="the clock since boot is Linux's")
    @pytest.mark.parametrize("hours", [-1, 1, 48])
    def test_a_step_of_the_wall_clock_moves_no_lease(self, path: Path, hours: int) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            held = claim(store, lease=60, retention=60)
            with time_machine.travel(datetime.now(UTC) + timedelta(hours=hours)):
                reply = acquire(store)
                assert isinstance(reply, Running)
                assert 59 < reply.lease_left <= 60
                record = store.get(KEY)
                assert record is not None
                assert record.expires_in == pytest.approx(120 - 3600 * hours, abs=1), (
                    "wall time judges retention"
                )
                assert store.purge() == 0
                assert store.complete(held, b"{}", retention=60) is True

    @pytest.mark.skipif(sys.platform != "linux", reason="the clock since boot is Linux's")
    def test_a_lease_of_another_boot_has_lapsed(self, path: Path) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            held = claim(store, lease=3600, retention=3600)
            sql(path, "UPDATE idempotency_record SET boot = x'00', lease_until = 1e12")
            record = store.get(KEY)
            assert record is not None
            assert record.lease_left <= 0.0
            successor = claim(store)
            assert (successor.attempt, store.complete(held, b"{}", retention=60)) == (2, False)

    def test_the_owner_itself_may_go_on_after_a_reboot(self, path: Path) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            held = claim(store)
            sql(path, "UPDATE idempotency_record SET boot = x'00', lease_until = 1e12")
            assert store.renew(held, lease=30) is True
            assert isinstance(acquire(store), Running)


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
        held = claim(store)
        with app:
            app.execute("INSERT INTO charge VALUES (5)")
            assert store.complete_in(app, held, b'{"n":1}', retention=60) is True
        reply = acquire(store)
        assert isinstance(reply, Completed)
        assert reply.outcome == b'{"n":1}'
        assert store.complete(held, b'{"n":2}', retention=60) is True

    def test_a_rollback_undoes_both(self, store: SyncSQLiteStore, app: sqlite3.Connection) -> None:
        held = claim(store)
        app.execute("INSERT INTO charge VALUES (5)")
        store.complete_in(app, held, b"{}", retention=60)
        app.rollback()
        assert isinstance(acquire(store), Running)
        assert app.execute("SELECT count(*) FROM charge").fetchone()[0] == 0

    def test_a_claim_that_was_taken_over_is_told_so(
        self, store: SyncSQLiteStore, app: sqlite3.Connection, clock: FakeClock
    ) -> None:
        stale = claim(store, lease=1)
        clock.advance(1)
        claim(store)
        app.execute("INSERT INTO charge VALUES (5)")
        assert store.complete_in(app, stale, b"{}", retention=60) is False

    def test_without_a_transaction_it_is_refused(
        self, store: SyncSQLiteStore, app: sqlite3.Connection
    ) -> None:
        with pytest.raises(ValueError, match="transaction"):
            store.complete_in(app, claim(store), b"{}", retention=60)

    def test_on_another_file_it_is_refused(self, store: SyncSQLiteStore, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "other.db")) as other:
            other.execute("CREATE TABLE t (x)")
            other.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(ValueError, match="not to"):
                store.complete_in(other, claim(store), b"{}", retention=60)

    def test_a_stale_snapshot_is_unavailable_not_a_driver_error(
        self, store: SyncSQLiteStore, app: sqlite3.Connection
    ) -> None:
        held = claim(store)
        app.isolation_level = None
        app.execute("BEGIN")
        app.execute("SELECT count(*) FROM charge").fetchone()
        claim(store, "another")  # commits after the snapshot of `app`
        with pytest.raises(StoreUnavailable, match="locked"):
            store.complete_in(app, held, b"{}", retention=60)


class TestContention:
    def test_a_lock_held_too_long_is_unavailable_and_had_no_effect(
        self, store: SyncSQLiteStore, path: Path
    ) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                acquire(store)
            other.execute("ROLLBACK")
        assert isinstance(acquire(store), Acquired)

    def test_a_replay_does_not_wait_for_a_writer(self, store: SyncSQLiteStore, path: Path) -> None:
        store.complete(claim(store), b"{}", retention=60)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert isinstance(acquire(store), Completed)

    def test_threads_take_turns_on_one_store(self, path: Path) -> None:
        with closing(SyncSQLiteStore(path)) as store:
            granted: list[Reply] = []

            def work() -> None:
                granted.extend(acquire(store, f"k{number}") for number in range(25))

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(isinstance(reply, Acquired) for reply in granted) == 25

    def test_eight_processes_open_one_new_file_and_grant_each_key_once(self, path: Path) -> None:
        script = f"""
            import secrets, sys
            from idempotency.stores.sqlite import SyncSQLiteStore
            sys.stdin.readline()  # all start together
            store = SyncSQLiteStore({str(path)!r})
            ask = dict(fingerprint=b"f" * 32, lease=30.0, retention=60.0)
            replies = [store.acquire(f"k{{n}}", owner=secrets.token_bytes(16), **ask) for n in range(100)]
            print(sum(type(reply).__name__ == "Acquired" for reply in replies))
        """
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(8)
        ]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        granted = [int(worker.communicate()[0]) for worker in workers]
        assert sum(granted) == 100

    def test_a_killed_process_leaves_a_claim_that_lapses(self, path: Path) -> None:
        script = f"""
            import time
            from idempotency.stores.sqlite import SyncSQLiteStore
            store = SyncSQLiteStore({str(path)!r})
            store.acquire("order-1", fingerprint=b"f" * 32, owner=b"o" * 16, lease=0.3, retention=60.0)
            print("claimed", flush=True)
            time.sleep(60)
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "claimed\n"
            process.send_signal(signal.SIGKILL)
        with closing(SyncSQLiteStore(path)) as store:
            deadline = time.monotonic() + 5
            while isinstance(reply := acquire(store), Running) and time.monotonic() < deadline:
                time.sleep(min(reply.lease_left, 0.05))
            assert isinstance(reply, Acquired)
            assert reply.claim.attempt == 2

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_store_opened_before_a_fork_works_in_both_processes(self, path: Path) -> None:
        script = f"""
            import os
            from idempotency.stores import _sqlite_file
            from idempotency.stores.sqlite import SyncSQLiteStore
            store = SyncSQLiteStore({str(path)!r})
            ask = dict(fingerprint=b"f" * 32, lease=30.0, retention=60.0)
            parents = store._file._connection
            child = os.fork()
            if child == 0:
                reply = store.acquire("from-child", owner=b"c" * 16, **ask)
                own = store._file._connection
                ok = type(reply).__name__ == "Acquired" and own is not parents
                os._exit(0 if ok and _sqlite_file._INHERITED == [parents] else 1)
            store.acquire("from-parent", owner=b"p" * 16, **ask)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert store._file._connection is parents
            print(*(record.key for record in store.scan().records))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "from-child from-parent\n"), done.stderr


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
class TestLoop:
    @pytest.fixture
    async def store(self, path: Path) -> AsyncIterator[SQLiteStore]:
        store = SQLiteStore(path, busy_timeout=2.0)
        yield store
        await store.aclose()

    async def ask(self, store: SQLiteStore) -> Reply:
        owner = Owner(secrets.token_bytes(16))
        return await store.acquire(KEY, fingerprint=FINGERPRINT, owner=owner, lease=30, retention=60)

    async def test_a_free_file_needs_no_thread(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store._patient, "run", lambda call: pytest.fail("moved to a thread"))
        reply = await self.ask(store)
        assert isinstance(reply, Acquired)
        assert await store.complete(reply.claim, b"{}", retention=60)
        assert isinstance(await self.ask(store), Completed)

    async def test_a_locked_file_is_waited_for_without_stopping_the_loop(
        self, store: SQLiteStore, path: Path
    ) -> None:
        import anyio

        ticks = 0
        replies: list[Reply] = []

        async def claim_it() -> None:
            replies.append(await self.ask(store))

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim_it)
                while ticks < 20:
                    await anyio.sleep(0.005)
                    ticks += 1
                assert replies == [], "the claim must wait for the writer"
                other.execute("COMMIT")
        assert isinstance(replies[0], Acquired)

    async def test_a_lock_that_stays_is_unavailable(self, path: Path, store: SQLiteStore) -> None:
        impatient = SQLiteStore(path, busy_timeout=0.05)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await self.ask(impatient)
        await impatient.aclose()
        with pytest.raises(StoreUnavailable, match="closed"):
            await self.ask(impatient)

    async def test_operators_may_scan_forget_and_purge(self, store: SQLiteStore) -> None:
        assert isinstance(await self.ask(store), Acquired)
        assert [record.key for record in (await store.scan()).records] == [KEY]
        assert await store.forget(KEY) is True
        assert await store.forget(KEY) is False
        assert await store.purge() == 0


def test_importing_the_store_imports_no_loop_that_is_not_there() -> None:
    code = "import sys, idempotency.stores.sqlite; assert 'trio' not in sys.modules and 'anyio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_both_stores_are_inspectable_and_purgeable() -> None:
    assert issubclass(SQLiteStore, Inspectable)
    assert issubclass(SQLiteStore, Purgeable)
    assert issubclass(SyncSQLiteStore, SyncInspectable)
    assert issubclass(SyncSQLiteStore, SyncPurgeable)


def test_one_store_serves_two_loops_one_after_the_other(path: Path) -> None:
    store = SQLiteStore(path)
    owner = Owner(b"o" * 16)

    async def ask() -> Reply:
        return await store.acquire(KEY, fingerprint=FINGERPRINT, owner=owner, lease=30, retention=60)

    assert asyncio.run(ask()) == asyncio.run(ask())
    asyncio.run(store.aclose())
