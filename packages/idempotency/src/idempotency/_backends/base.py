"""
Gives the engine and the middleware one interface to the running event loop, asyncio or trio.

trio is looked up only where it is the one that runs, so that importing this package needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import trio

__all__ = ["Gate", "Runtime", "Signal", "Timer", "on_trio", "running"]

T = TypeVar("T")
_log = logging.getLogger("idempotency")


class Timer(Protocol):
    """Something that will happen unless it is cancelled."""

    def cancel(self) -> None:
        """Have it not happen; harmless once it has begun."""


class Gate(Protocol[T]):
    """A value that one task waits for and another gives, once."""

    value: T | None

    def give(self, value: T) -> bool:
        """Hand over the value; False if one was given already or nobody waits any more."""

    async def wait(self, timeout: float) -> T | None:
        """The value, or None after *timeout* seconds: then the gate is shut and takes no value any more."""


class Signal(Protocol):
    """A flag that tasks wait for."""

    def set(self) -> None:
        """Raise it."""

    async def wait(self) -> object:
        """Return once it is raised."""


class Runtime(Protocol):
    """The operations that asyncio and trio do differently."""

    @property
    def loop(self) -> object:
        """Identity of the running loop: what belongs to one must not be touched from another."""

    def after(self, seconds: float, function: Callable[[], Coroutine[Any, Any, None]]) -> Timer:
        """Run *function* as a task of its own in *seconds*."""

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *function* as a task of its own, which outlives the caller; what it raises is logged."""

    def gate(self) -> Gate[Any]:
        """A new gate."""

    def signal(self) -> Signal:
        """A flag, not raised."""

    def lock(self) -> AbstractAsyncContextManager[object]:
        """A new lock."""

    async def sleep(self, seconds: float) -> None:
        """Let *seconds* pass."""

    async def within(self, seconds: float, awaitable: Callable[[], Awaitable[T]]) -> T:
        """The result, or TimeoutError after *seconds*."""


def running() -> Runtime:
    """
    The loop this is called from.

    Raises:
        RuntimeError: Called outside asyncio and trio.
    """
    global _last  # noqa: PLW0603
    try:
        # A system call on Python 3.11: ask once a request and hand the answer on.
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio()
    last = _last
    if last is None or last.loop is not loop:
        last = _last = _Asyncio(loop)
    return last


def on_trio() -> bool:
    """Whether this is called from trio; nearly free where nobody has imported it."""
    return "trio" in sys.modules and running() is _TRIO


class _Asyncio:
    """asyncio: timers and futures of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._tasks: set[asyncio.Task[None]] = set()  # a loop keeps only weak references to its tasks

    def after(self, seconds: float, function: Callable[[], Coroutine[Any, Any, None]]) -> Timer:
        return self.loop.call_later(seconds, self.spawn, function)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self.loop.create_task(_logged(function))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def gate(self) -> Gate[Any]:
        return _AsyncioGate(self.loop)

    def signal(self) -> Signal:
        return asyncio.Event()

    def lock(self) -> AbstractAsyncContextManager[object]:
        return asyncio.Lock()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def within(self, seconds: float, awaitable: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(seconds):
            return await awaitable()


class _AsyncioGate(Generic[T]):
    __slots__ = ("_future", "_loop", "value")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.value: T | None = None
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()

    def give(self, value: T) -> bool:
        if self._future.done():
            return False
        self.value = value
        self._future.set_result(None)
        return True

    async def wait(self, timeout: float) -> T | None:
        timer = self._loop.call_later(timeout, self._shut)
        try:
            await self._future
        finally:
            timer.cancel()
        return self.value

    def _shut(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class _Trio:
    """trio: system tasks and events; a system task that crashes would end the program, so each logs what it raises."""

    @property
    def loop(self) -> object:
        import trio

        return trio.lowlevel.current_trio_token()

    def after(self, seconds: float, function: Callable[[], Coroutine[Any, Any, None]]) -> Timer:
        import trio

        # Cancelled, it must stop sleeping but not a function that has begun.
        scope = trio.CancelScope()

        async def later() -> None:
            with scope:
                await trio.sleep(seconds)
            if not scope.cancelled_caught:
                await _logged(function)

        trio.lowlevel.spawn_system_task(later)
        return scope

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        import trio

        trio.lowlevel.spawn_system_task(_logged, function)

    def gate(self) -> Gate[Any]:
        import trio

        return _TrioGate(trio.Event())

    def signal(self) -> Signal:
        import trio

        return trio.Event()

    def lock(self) -> AbstractAsyncContextManager[object]:
        import trio

        return trio.Lock()

    async def sleep(self, seconds: float) -> None:
        import trio

        await trio.sleep(seconds)

    async def within(self, seconds: float, awaitable: Callable[[], Awaitable[T]]) -> T:
        import trio

        with trio.move_on_after(seconds):
            return await awaitable()
        raise TimeoutError


class _TrioGate(Generic[T]):
    __slots__ = ("_event", "_shut", "value")

    def __init__(self, event: trio.Event) -> None:
        self.value: T | None = None
        self._event = event
        self._shut = False

    def give(self, value: T) -> bool:
        if self._shut or self._event.is_set():
            return False
        self.value = value
        self._event.set()
        return True

    async def wait(self, timeout: float) -> T | None:
        import trio

        try:
            with trio.move_on_after(timeout):
                await self._event.wait()
        finally:
            self._shut = True
        return self.value


async def _logged(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await function()
    except Exception:
        _log.exception("a background task of the idempotency engine failed")


_last: _Asyncio | None = None  # of the loop that asked last: a process rarely has two
_TRIO = _Trio()


def _trio() -> Runtime:
    try:
        import trio
    except ImportError:
        raise RuntimeError(
            "idempotency needs a running asyncio or trio loop here: call it from async code, or use a sync store"
        ) from None
    trio.lowlevel.current_trio_token()  # raises RuntimeError outside trio
    return _TRIO
