"""One SQLite file with many users: threads, processes, event loops, forks, and killed processes."""

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
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from patience import PATIENCE, until, until_sync
from store_calls import FINGERPRINT, KEY, acquire, claim

from idempotency import Acquired, Completed, Owner, Running
from idempotency.errors import StoreUnavailable
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore

Reply = Acquired | Running | Completed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


@pytest.fixture
def store(path: Path) -> Iterator[SyncSQLiteStore]:
    with closing(SyncSQLiteStore(path, busy_timeout=0.05)) as store:
        yield store


class TestContention:
    def test_a_lock_held_past_busy_timeout_raises_store_unavailable_and_nothing_is_claimed(
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

    def test_a_file_that_has_its_tables_can_be_opened_during_a_write(
        self, store: SyncSQLiteStore, path: Path
    ) -> None:
        store.complete(claim(store), b"{}", retention=60)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with closing(SyncSQLiteStore(path)) as second:
                assert isinstance(acquire(second), Completed)

    def test_a_call_gives_up_while_another_thread_holds_the_store_too_long(
        self, store: SyncSQLiteStore
    ) -> None:
        held, done = threading.Event(), threading.Event()

        def hold(connection: sqlite3.Connection) -> None:
            held.set()
            done.wait(30)

        thread = threading.Thread(target=store._file.run, args=(hold,))
        thread.start()
        held.wait(30)
        with pytest.raises(StoreUnavailable, match="other threads"):
            acquire(store)
        done.set()
        thread.join()

    def test_eight_threads_on_one_store_are_granted_each_key_once(self, path: Path) -> None:
        with closing(SyncSQLiteStore(path, busy_timeout=PATIENCE)) as store:
            granted: list[Reply] = []

            def work() -> None:
                granted.extend(acquire(store, f"k{number}") for number in range(25))

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(isinstance(reply, Acquired) for reply in granted) == 25

    def test_eight_processes_that_open_a_new_file_are_granted_each_key_once(self, path: Path) -> None:
        script = f"""
            import secrets, sys
            from idempotency.stores.sqlite import SyncSQLiteStore
            sys.stdin.readline()  # all start together
            store = SyncSQLiteStore({str(path)!r}, busy_timeout={PATIENCE})
            acquire_async = dict(fingerprint=b"f" * 32, lease=30.0, retention=60.0)
            replies = [store.acquire(f"k{{n}}", owner=secrets.token_bytes(16), **acquire_async) for n in range(100)]
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

    @pytest.mark.real_time("a killed process leaves a lease that runs out")
    def test_the_claim_of_a_killed_process_is_taken_over_after_its_lease(self, path: Path) -> None:
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
            replies: list[Reply] = []

            def takes_over() -> bool:
                replies.append(acquire(store))
                return not isinstance(replies[-1], Running)

            until_sync(takes_over)
            reply = replies[-1]
            assert isinstance(reply, Acquired)
            assert reply.claim.attempt == 2

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_store_opened_before_a_fork_works_in_both_processes(self, path: Path) -> None:
        script = f"""
            import os
            from idempotency.stores.sqlite import file
            from idempotency.stores.sqlite import SyncSQLiteStore
            store = SyncSQLiteStore({str(path)!r})
            acquire_async = dict(fingerprint=b"f" * 32, lease=30.0, retention=60.0)
            parents = store._file._connection
            child = os.fork()
            if child == 0:
                reply = store.acquire("from-child", owner=b"c" * 16, **acquire_async)
                own = store._file._connection
                ok = type(reply).__name__ == "Acquired" and own is not parents
                os._exit(0 if ok and file._INHERITED == [parents] else 1)
            store.acquire("from-parent", owner=b"p" * 16, **acquire_async)
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

    async def acquire_async(self, store: SQLiteStore) -> Reply:
        owner = Owner(secrets.token_bytes(16))
        return await store.acquire(KEY, fingerprint=FINGERPRINT, owner=owner, lease=30, retention=60)

    async def test_calls_to_an_unlocked_file_use_no_thread(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store._patient, "run", lambda call: pytest.fail("moved to a thread"))
        reply = await self.acquire_async(store)
        assert isinstance(reply, Acquired)
        assert await store.complete(reply.claim, b"{}", retention=60)
        assert isinstance(await self.acquire_async(store), Completed)

    async def test_a_call_to_a_locked_file_waits_without_blocking_the_event_loop(
        self, store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waiting = threading.Event()
        wait_in_a_thread = store._patient.run

        def record_and_run(call: Any) -> Any:
            waiting.set()
            return wait_in_a_thread(call)

        monkeypatch.setattr(store._patient, "run", record_and_run)
        replies: list[Reply] = []

        async def claim_it() -> None:
            replies.append(await self.acquire_async(store))

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim_it)
                await until(waiting.is_set)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert replies == [], "the claim must wait for the writer"
                other.execute("COMMIT")
        assert isinstance(replies[0], Acquired)

    async def test_a_lock_held_past_busy_timeout_raises_store_unavailable(
        self, path: Path, store: SQLiteStore
    ) -> None:
        short_timeout = SQLiteStore(path, busy_timeout=0.05)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await self.acquire_async(short_timeout)
        await short_timeout.aclose()
        with pytest.raises(StoreUnavailable, match="closed"):
            await self.acquire_async(short_timeout)

    async def test_the_async_store_can_scan_forget_and_purge(self, store: SQLiteStore) -> None:
        assert isinstance(await self.acquire_async(store), Acquired)
        assert [record.key for record in (await store.scan()).records] == [KEY]
        assert await store.forget(KEY) is True
        assert await store.forget(KEY) is False
        assert await store.purge() == 0


def test_importing_the_store_imports_neither_trio_nor_anyio() -> None:
    code = "import sys, idempotency.stores.sqlite; assert 'trio' not in sys.modules and 'anyio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_store_works_in_two_consecutive_event_loops(path: Path) -> None:
    store = SQLiteStore(path)
    owner = Owner(b"o" * 16)

    async def acquire_async() -> Reply:
        return await store.acquire(KEY, fingerprint=FINGERPRINT, owner=owner, lease=30, retention=60)

    assert asyncio.run(acquire_async()) == asyncio.run(acquire_async())
    asyncio.run(store.aclose())


def test_effects_committed_with_their_record_happen_once_although_workers_are_killed(path: Path) -> None:
    """Three workers compete for the same keys and are killed at every step of a run; each effect happens once."""
    with closing(SyncSQLiteStore(path)), closing(sqlite3.connect(path)) as app:
        app.execute("CREATE TABLE effect (key TEXT)")
        app.commit()
    script = f"""
        import os, random, secrets, signal, sqlite3, sys
        from idempotency.stores.sqlite import SyncSQLiteStore
        steps = {{"claimed": 0, "effect made": 0, "recorded": 0, "committed": 0}}

        def work(seed):
            dice = random.Random(seed)

            def perhaps_die(step):
                if dice.random() < 0.2:
                    os.write(1, f"{{step}}\\n".encode())
                    os.kill(os.getpid(), signal.SIGKILL)

            store = SyncSQLiteStore({str(path)!r}, busy_timeout={PATIENCE})
            app = sqlite3.connect({str(path)!r}, timeout={PATIENCE})
            for number in range(40):
                key = f"k{{number}}"
                while True:
                    reply = store.acquire(
                        key, fingerprint=b"f", owner=secrets.token_bytes(16), lease=0.01, retention=60.0
                    )
                    if type(reply).__name__ == "Completed":
                        break
                    if type(reply).__name__ == "Running":
                        continue
                    perhaps_die("claimed")
                    app.execute("INSERT INTO effect VALUES (?)", (key,))
                    perhaps_die("effect made")
                    recorded = store.complete_in(app, reply.claim, b"{{}}", retention=60.0)
                    perhaps_die("recorded")
                    (app.commit if recorded else app.rollback)()
                    perhaps_die("committed")

        def start(seed):
            child = os.fork()
            if child == 0:
                work(seed)
                os._exit(0)
            return child

        seeds = iter(range(100_000))
        running = {{start(next(seeds)) for _ in range(3)}}
        while running:
            child, status = os.wait()
            running.discard(child)
            if os.WIFSIGNALED(status):
                running.add(start(next(seeds)))
            elif status:
                sys.exit("a worker failed")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for step in ("claimed", "effect made", "recorded", "committed"):
        assert done.stdout.count(step) > 0, f"nothing was killed after {step!r}"
    with closing(sqlite3.connect(path)) as app:
        effects = app.execute("SELECT key, count(*) FROM effect GROUP BY key").fetchall()
    assert sorted(effects) == sorted((f"k{number}", 1) for number in range(40))
