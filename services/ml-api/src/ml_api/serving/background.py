"""Runs work in a thread that neither a caller past its deadline nor a stopping process waits for."""

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
    Call *function* in a daemon thread of its own and wait for what it returns or raises.

    A cancelled caller stops waiting at once; the thread goes on and its result is dropped. As a daemon it does not
    keep the process alive, which a thread of a pool would.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    future.set_running_or_notify_cancel()  # from now on nobody can cancel it
    threading.Thread(target=work, name="model-load", daemon=True).start()
    return await asyncio.wrap_future(future)
