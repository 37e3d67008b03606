"""A worker thread from either event loop, without importing the one that is not running."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TypeVar, cast

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """
    Run *call* in a worker thread of the running loop, asyncio or trio.

    A cancelled caller does not wait: the thread goes on, so the effect is unknown, as after any lost reply (R8).
    """
    trio = sys.modules.get("trio")  # if it is not even imported, it is not running
    if trio is not None and trio.lowlevel.in_trio_run():
        return cast("T", await trio.to_thread.run_sync(call, abandon_on_cancel=True))
    return await asyncio.to_thread(call)
