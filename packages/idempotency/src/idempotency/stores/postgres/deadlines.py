"""Runs calls under the store's deadline, as tasks of an event loop or in the store's own threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency._runtime.asyncio_only import asyncio_loop, other_loop
from idempotency._runtime.fork import forget_in_child
from idempotency.stores.postgres.errors import not_begun, too_late

__all__ = ["AsyncCalls", "SyncCalls"]

T = TypeVar("T")


class AsyncCalls:
    """
    The calls of one store, each in a separate task, all in one event loop.

    Args:
        store: The store, named in errors.
        pool: The store's connections.
        deadline: Seconds for each call.
    """

    def __init__(self, store: object, pool: AsyncConnectionPool[Any], deadline: float) -> None:
        self._store = store
        self._pool = pool
        self._deadline = deadline
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self) -> asyncio.AbstractEventLoop:
        """The running loop. Another loop is refused: the pool's workers belong to the first, so a call would hang."""
        loop = asyncio_loop(self._store)
        workers = () if self._pool.closed else getattr(self._pool, "_workers", ())
        for bound in (self._loop, *(worker.get_loop() for worker in workers)):
            if bound is not None and bound is not loop:
                raise RuntimeError(other_loop(self._store, "pool and one store"))
        self._loop = loop
        return loop

    async def within_deadline(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """
        The result of *call*, or `StoreUnavailable` after the deadline.

        The call runs in a separate task, because psycopg handles a cancellation by asking the server to stop, and may
        wait for that longer than the deadline.
        """
        task = self.bind().create_task(call())
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._deadline)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            raise too_late(self._deadline)
        return task.result()

    async def aclose(self) -> None:
        """Wait for abandoned calls."""
        if self._tasks:
            self.bind()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks the exception of an abandoned call as seen


class SyncCalls:
    """
    The calls of one store, each in a thread, because the driver cannot be told to stop waiting.

    There are as many threads as the pool has connections. An abandoned call keeps its thread until the server or the
    network ends it.

    Args:
        store: The store, named in errors.
        pool: The store's connections.
        deadline: Seconds for each call.
    """

    def __init__(self, store: object, pool: ConnectionPool[Any], deadline: float) -> None:
        self._name = type(store).__name__
        self._pool = pool
        self._deadline = deadline
        self._is_of_parent = False  # whether the pool was open when this process was forked
        self._start_anew()
        forget_in_child(self, SyncCalls._start_in_child)

    def bind(self) -> None:
        """Refuse the pool of the parent process: both would read from the same sockets, each the other's replies."""
        if self._is_of_parent:
            raise RuntimeError(
                f"this {self._name} was in use when this process was forked, and its connections belong to the parent: "
                "make a pool and a store in each process, after the fork (with gunicorn without --preload, or in "
                "post_fork)"
            )

    def within_deadline(self, call: Callable[[], T]) -> T:
        """The result of *call*, or `StoreUnavailable` after the deadline."""
        self.bind()
        try:
            future = self._threads.submit(call)
        except RuntimeError as error:  # after `close`, or the system has no more threads
            raise not_begun() from error
        try:
            return future.result(self._deadline)
        except TimeoutError:
            future.cancel()  # has an effect only if the call has not begun
            raise too_late(self._deadline) from None

    def close(self) -> None:
        """Let the threads end once they are idle; does not wait for them."""
        self._threads.shutdown(wait=False)

    def _start_anew(self) -> None:
        self._threads = ThreadPoolExecutor(
            max(self._pool.max_size, 1), thread_name_prefix="idempotency-postgres"
        )

    def _start_in_child(self) -> None:
        """Called in a forked child, which has none of its parent's threads."""
        self._is_of_parent = self._is_of_parent or not self._pool.closed
        self._start_anew()
