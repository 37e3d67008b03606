"""Any blocking store in threads: the same contract, bounded, under either loop."""

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
    """Counts the calls inside at once, and the threads they come from."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.most = 0
        self.threads: set[int] = set()
        self.closed = False
        self.gate = threading.Event()

    def get(self, key: StorageKey) -> Record | None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.threads.add(threading.get_ident())
        self.gate.wait(30)
        with self._lock:
            self.inside -= 1
        return None

    def close(self) -> None:
        self.closed = True


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
class TestThreads:
    async def test_calls_run_at_once_but_no_more_than_allowed(self) -> None:
        inner = Counting()
        store = ThreadedStore(inner, max_threads=3)
        async with anyio.create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(store.get, StorageKey("k"))
            with anyio.fail_after(30):
                await until(lambda: inner.inside >= 3)
            inner.gate.set()
        assert inner.most == 3
        assert threading.get_ident() not in inner.threads
        await store.aclose()
        assert inner.closed

    async def test_a_cancelled_caller_does_not_wait_for_its_thread(self) -> None:
        inner = Counting()
        store = ThreadedStore(inner)
        with anyio.move_on_after(0.01) as scope:
            await store.get(StorageKey("k"))
        assert scope.cancelled_caught
        assert inner.inside == 1, "the call itself goes on"
        inner.gate.set()
        await store.aclose()

    async def test_replies_come_back_as_they_are(self) -> None:
        store = ThreadedStore(SyncMemoryStore())
        reply = await store.acquire(
            StorageKey("k"), fingerprint=Fingerprint(b"f"), owner=Owner(b"o"), lease=1, retention=1
        )
        assert isinstance(reply, Acquired)
        await store.aclose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_store_used_before_a_fork_has_threads_in_the_child_too() -> None:
    script = """
        import asyncio, os, time
        from idempotency.stores.memory import SyncMemoryStore
        from idempotency.stores.threaded import ThreadedStore
        store = ThreadedStore(SyncMemoryStore())
        asyncio.run(store.get("k"))
        time.sleep(0.1)  # until its thread is idle: that is the one the child would wait for
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


def test_a_pool_of_no_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="max_threads"):
        ThreadedStore(SyncMemoryStore(), max_threads=0)
