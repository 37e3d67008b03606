"""Runs a function in a daemon thread, so that a cancelled caller or a stopping process does not wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["run_in_background"]

T = TypeVar("T")


async def run_in_background(function: Callable[[], T]) -> T:
    """
    Call *function* in a new daemon thread, and return its result or raise its exception.

    If the caller is cancelled, it stops waiting at once; the thread goes on, and its result is dropped. Unlike a pool's
    thread, a daemon thread does not keep the process alive.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    future.set_running_or_notify_cancel()  # from now on it cannot be cancelled
    threading.Thread(target=work, name="model-load", daemon=True).start()
    return await asyncio.wrap_future(future)
