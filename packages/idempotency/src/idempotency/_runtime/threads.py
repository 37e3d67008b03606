"""Runs calls in worker threads from asyncio or trio, and imports only the library whose loop is running."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from idempotency._runtime.fork import forget_in_child

if TYPE_CHECKING:
    import trio

__all__ = ["Threads"]

T = TypeVar("T")


class Threads:
    """
    At most *limit* worker threads for one store, made when first needed.

    Each store has its own, so that a store that waits for a lock does not use up the program's shared threads.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._pool: ThreadPoolExecutor | None = None  # under asyncio
        self._limiter: trio.CapacityLimiter | None = None  # under trio, which manages the threads itself
        forget_in_child(self, Threads._forget_threads)

    async def run(self, call: Callable[[], T]) -> T:
        """
        Run *call* in a worker thread, under asyncio or trio.

        A cancelled caller stops waiting while the thread goes on: as after a lost reply, the effect is unknown (R8).
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio

            if self._limiter is None:
                self._limiter = trio.CapacityLimiter(self._limit)
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._limit, thread_name_prefix=self._name)
        context = contextvars.copy_context()
        return await loop.run_in_executor(self._pool, context.run, call)

    def _forget_threads(self) -> None:
        """Called in a forked child, whose copy of the pool has no threads."""
        self._pool = self._limiter = None

    def close(self) -> None:
        """Let the threads end once they are idle; does not wait for them."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None
