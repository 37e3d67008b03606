"""A blocking store in threads: the store contract, a bound on threads, asyncio and trio."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from patience import until

from idempotency._core.types import Acquired, Fingerprint, Owner, Record, StorageKey
from idempotency.store import Store
from idempotency.stores.memory import SyncMemoryStore
from idempotency.stores.threaded import ThreadedStore
from idempotency.testing import Clock, StoreContract


class TestThreadedStoreContract(StoreContract):
    max_examples = 30

    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        store = ThreadedStore(SyncMemoryStore(clock=clock))
        yield store
        await store.aclose()


class Counting(SyncMemoryStore):
    """Counts the calls that run at once, and the threads that they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.running = self.most_running = 0
        self.threads: set[int] = set()
        self.closed = False
        self.gate = threading.Event()

    def get(self, key: StorageKey) -> Record | None:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.threads.add(threading.get_ident())
        self.gate.wait(30)
        with self._lock:
            self.running -= 1
        return None

    def close(self) -> None:
        self.closed = True


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
class TestThreads:
    async def test_calls_run_concurrently_up_to_max_threads(self) -> None:
        inner = Counting()
        store = ThreadedStore(inner, max_threads=3)
        async with anyio.create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(store.get, StorageKey("k"))
            with anyio.fail_after(30):
                await until(lambda: inner.running >= 3)
            inner.gate.set()
        assert inner.most_running == 3
        assert threading.get_ident() not in inner.threads
        await store.aclose()
        assert inner.closed

    async def test_a_cancelled_caller_does_not_wait_for_its_thread(self) -> None:
        inner = Counting()
        store = ThreadedStore(inner)
        with anyio.move_on_after(0.01) as scope:
            await store.get(StorageKey("k"))
        assert scope.cancelled_caught
        assert inner.running == 1, "the call itself continues in its thread"
        inner.gate.set()
        await store.aclose()

    async def test_a_reply_is_that_of_the_inner_store(self) -> None:
        inner = SyncMemoryStore()
        store, ask = ThreadedStore(inner), {"fingerprint": Fingerprint(b"f"), "owner": Owner(b"o")}
        reply = await store.acquire(StorageKey("k"), **ask, lease=30, retention=60)
        assert isinstance(reply, Acquired)
        assert reply == inner.acquire(StorageKey("k"), **ask, lease=30, retention=60)
        await store.aclose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_store_used_before_a_fork_works_in_the_child() -> None:
    script = """
        import asyncio, os, time
        from idempotency.stores.memory import SyncMemoryStore
        from idempotency.stores.threaded import ThreadedStore
        store = ThreadedStore(SyncMemoryStore())
        asyncio.run(store.get("k"))
        time.sleep(0.1)  # until its thread is idle: the child has no such thread and would wait for it
        child = os.fork()
        if child == 0:
            asyncio.run(asyncio.wait_for(store.get("k"), 30))
            os._exit(0)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_max_threads_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_threads"):
        ThreadedStore(SyncMemoryStore(), max_threads=0)
