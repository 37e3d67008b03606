"""
Gives the engine and the middleware one interface to the running event loop, asyncio or trio.

trio is imported only when it is running, so importing this package needs only the standard library.
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
    """A function that will be called unless the timer is cancelled."""

    def cancel(self) -> None:
        """Prevent the call; no effect once it has begun."""


class Gate(Protocol[T]):
    """A value that one task waits for and another task gives, once."""

    value: T | None

    def give(self, value: T) -> bool:
        """Give the value; False if a value was given before or the wait has ended."""

    async def wait(self, timeout: float) -> T | None:
        """The value, or None after *timeout* seconds; from then on `give` returns False."""


class Signal(Protocol):
    """A flag that tasks wait for."""

    def set(self) -> None:
        """Set the flag."""

    async def wait(self) -> object:
        """Return once the flag is set."""


class Runtime(Protocol):
    """The operations that asyncio and trio do differently."""

    @property
    def loop(self) -> object:
        """The identity of the running loop: objects of one loop must not be used in another."""

    def after(self, seconds: float, function: Callable[[], None]) -> Timer:
        """
        Call *function* after *seconds*, in the loop and outside any task; its exceptions are logged.

        A function that has to await something calls `spawn`. A task made for each call would be lost, with a warning,
        whenever the timer is due in the last turn of a loop that is being closed.
        """

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *function* in a new task, which outlives the caller; its exceptions are logged."""

    def gate(self) -> Gate[Any]:
        """A new gate."""

    def signal(self) -> Signal:
        """A new flag, not set."""

    def lock(self) -> AbstractAsyncContextManager[object]:
        """A new lock."""

    async def sleep(self, seconds: float) -> None:
        """Sleep for *seconds*."""

    async def within(self, seconds: float, awaitable: Callable[[], Awaitable[T]]) -> T:
        """The result of *awaitable*; TimeoutError after *seconds*."""


def running() -> Runtime:
    """
    The running event loop.

    Raises:
        RuntimeError: Neither asyncio nor trio is running.
    """
    global _last  # noqa: PLW0603
    try:
        # A system call on Python 3.11: callers ask once per request and pass the result on.
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio()
    last = _last
    if last is None or last.loop is not loop:
        last = _last = _Asyncio(loop)
    return last


def on_trio() -> bool:
    """Whether trio is running; very cheap while trio is not imported."""
    return "trio" in sys.modules and running() is _TRIO


class _Asyncio:
    """asyncio: timers and futures of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._tasks: set[asyncio.Task[None]] = set()  # a loop keeps only weak references to its tasks

    def after(self, seconds: float, function: Callable[[], None]) -> Timer:
        return self.loop.call_later(seconds, function)

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
    """trio: system tasks and events. An exception in a system task would end the program, so each task logs its own."""

    @property
    def loop(self) -> object:
        import trio

        return trio.lowlevel.current_trio_token()

    def after(self, seconds: float, function: Callable[[], None]) -> Timer:
        import trio

        scope = trio.CancelScope()

        async def later() -> None:
            with scope:
                await trio.sleep(seconds)
            if not scope.cancelled_caught:
                try:
                    function()
                except Exception:
                    _log.exception("a timer of the idempotency engine failed")

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


_last: _Asyncio | None = None  # for the loop of the last call; a process rarely has two loops
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
