"""After `os.fork` the child forgets the connections, threads and locks of its parent."""

from __future__ import annotations

import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable
from weakref import ref

import pytest
from patience import PATIENCE
from redis_servers import Server

from idempotency import Acquired, Fingerprint, Owner, StorageKey
from idempotency._runtime.fork import forget_in_child
from idempotency.engine.owner import new_owner
from idempotency.stores.memory import SyncMemoryStore
from idempotency.stores.redis import SyncRedisStore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def is_true_in_child(check: Callable[[], bool]) -> bool:
    """Whether *check* is true in a forked child, which is killed after five seconds."""
    with warnings.catch_warnings():
        # Python warns of a fork beside threads, which these tests need.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout's handler would report and go on
        signal.alarm(5)
        os._exit(0 if check() else 1)
    return os.waitpid(child, 0)[1] == 0


class Owned:
    def __init__(self) -> None:
        self.forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1


def test_registered_state_is_forgotten_once_in_the_child_and_not_in_the_parent() -> None:
    owned = Owned()
    forget_in_child(owned, Owned.forget)

    assert is_true_in_child(lambda: owned.forgotten == 1)
    assert owned.forgotten == 0


def test_registered_state_can_be_garbage_collected() -> None:
    owned = Owned()
    forget_in_child(owned, Owned.forget)
    watched = ref(owned)

    del owned
    gc.collect()

    assert watched() is None
    assert is_true_in_child(lambda: True), "a fork skips the collected entry"


def test_parent_and_child_generate_different_owners() -> None:
    reading, writing = os.pipe()
    new_owner()

    def generate() -> bool:
        return os.write(writing, new_owner()) == 16

    assert is_true_in_child(generate)
    assert os.read(reading, 16) != new_owner()
    os.close(reading)
    os.close(writing)


def claim(store: SyncMemoryStore | SyncRedisStore, key: str) -> bool:
    reply = store.acquire(
        StorageKey(key),
        fingerprint=Fingerprint(b"f" * 32),
        owner=Owner(new_owner()),
        lease=30.0,
        retention=60.0,
    )
    return isinstance(reply, Acquired)


def test_a_memory_store_that_a_thread_was_using_works_in_the_child() -> None:
    parent, entered, leave = os.getpid(), threading.Event(), threading.Event()

    def clock() -> float:  # is read inside the store's lock
        if os.getpid() == parent:
            entered.set()
            leave.wait(20)
        return 0.0

    store = SyncMemoryStore(clock=clock)
    thread = threading.Thread(target=claim, args=(store, "of the parent"))
    thread.start()
    assert entered.wait(20)
    try:
        assert is_true_in_child(lambda: claim(store, "of the child"))
    finally:
        leave.set()
        thread.join()


def test_a_redis_store_that_a_thread_was_using_works_in_the_child(redis_server: Server) -> None:
    key = new_owner().hex()
    with redis_server.client() as client:
        store = SyncRedisStore(client, deadline=PATIENCE)
        with store._lock:  # as held by a thread that is being given a connection
            assert is_true_in_child(lambda: claim(store, key))
        assert not claim(store, key)
        store.close()
