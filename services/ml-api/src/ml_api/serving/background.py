"""Work in a thread that nobody has to wait for: neither a caller whose time is up nor a process that stops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["run_in_background"]

T = TypeVar("T")


async def run_in_background(function: Callable[[], T]) -> T:
    """
    Call *function* in a daemon thread of its own and wait for what it returns or raises.

    A cancelled caller stops waiting at once; the thread goes on and its result is dropped. As a daemon it does not
    keep the process alive, which a thread of a pool would.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: the service stopped meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="model-load", daemon=True).start()
    return await future
