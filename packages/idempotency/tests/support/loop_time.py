"""Event loops whose clock a test moves: timers that are due then fire at once."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import trio
import trio.testing

__all__ = ["advance", "movable"]

_TURNS = 10  # iterations of the loop: a timer wakes a task, which wakes another


class _MovableLoop(asyncio.SelectorEventLoop):
    ahead = 0.0  # s, before the machine's clock

    def time(self) -> float:
        return super().time() + self.ahead


def movable(backend: str) -> tuple[str, dict[str, Any]]:
    """For the fixture `anyio_backend`: "asyncio" or "trio", with a clock that a test may move."""
    if backend == "trio":
        return backend, {"clock": trio.testing.MockClock(rate=1.0)}
    return backend, {"loop_factory": _MovableLoop}


async def advance(seconds: float) -> None:
    """Move the running loop's clock, and return once every task is blocked again."""
    await anyio.wait_all_tasks_blocked()
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(seconds)
    else:
        assert isinstance(loop, _MovableLoop)
        loop.ahead += seconds
    for _ in range(_TURNS):
        await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()
