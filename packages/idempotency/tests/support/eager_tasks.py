"""Eager tasks: each begins to run where it is made, and may be done before its maker has a reference to it."""

from __future__ import annotations

import asyncio
import sys
from asyncio import tasks
from collections.abc import Coroutine
from typing import Any

__all__ = ["use_eager_tasks"]


def use_eager_tasks() -> None:
    """Make every further task of the running loop eager."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory if sys.version_info >= (3, 12) else _eager)


def _eager(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """What Python 3.12's factory does, by the parts of asyncio that 3.11 has for it."""
    maker = tasks.current_task(loop)
    task = tasks._PyTask(coro, loop=loop, **options)  # type: ignore[attr-defined]
    if maker is not None:
        first_step = loop._ready.pop()  # type: ignore[attr-defined]
        tasks._leave_task(loop, maker)
        try:
            first_step._run()
        finally:
            tasks._enter_task(loop, maker)
    return task
