"""
Deadlines that hold: a call ends when its time is up, whatever the other side sends meanwhile.

An HTTP library's timeouts bound each step, so that a server which sends a byte now and then is waited for without end.
A coroutine can be cancelled at a deadline; a blocking call cannot, so it is made in a thread that its caller can leave.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import copy_context
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from idempotency._backends.base import running

__all__ = ["AsyncBoundedStream", "BoundedStream", "Worker", "within"]

T = TypeVar("T")
_END: Final[Any] = object()
_CLOSING: Final = 1.0  # s


async def within(seconds: float, function: Callable[[], Awaitable[T]]) -> T:
    """
    What *function* gives; cancelled after *seconds*.

    Raises:
        TimeoutError: The time is up.
    """
    return await function() if seconds == inf else await running().within(seconds, function)


class Worker:
    """
    A daemon thread that makes one caller's blocking calls, one after the other.

    Once a call was left, the worker takes no more; what that call gives in the end is closed, where it can be.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[tuple[bool, Any]]] | None] = (
            SimpleQueue()
        )
        self._left = False
        self._thread: threading.Thread | None = None

    def call(self, seconds: float, function: Callable[[], T]) -> T:
        """
        What *function* gives; without a deadline it is called right here.

        Raises:
            TimeoutError: It took longer than *seconds*; it goes on alone.
        """
        if seconds == inf:
            return function()
        if self._left:
            raise TimeoutError
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="idempotency-client", daemon=True)
            self._thread.start()
        answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        context = copy_context()
        self._calls.put((lambda: context.run(function), answers))
        try:
            succeeded, answer = answers.get(timeout=seconds)
        except Empty:
            self._left = True
            raise TimeoutError from None
        except BaseException:  # interrupted
            self._left = True
            raise
        if succeeded:
            result: T = answer
            return result
        raise answer

    def end(self) -> None:
        """Let the thread end, at once or when the call that was left is over."""
        if self._thread is not None:
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, answers = call
            try:
                answer: tuple[bool, Any] = (True, function())
            except BaseException as error:
                answer = (False, error)
            answers.put(answer)
            if self._left:
                close = getattr(answer[1], "close", None)
                if close is not None:
                    with contextlib.suppress(Exception):  # nobody waits for it any more
                        close()
                return
            del function, answers, answer, call  # hold nothing while there is nothing to do


class BoundedStream:
    """
    A response's body that comes in time or not at all; mixed into a library's `SyncByteStream`.

    Args:
        stream: The body.
        worker: Has made the call so far; it ends with the stream.
        left: Seconds until the deadline.
        late: Makes the error to raise once it is over.
    """

    def __init__(
        self, stream: Any, worker: Worker, left: Callable[[], float], late: Callable[[], Exception]
    ) -> None:
        self._stream = stream
        self._worker = worker
        self._seconds = left
        self._late = late

    def __iter__(self) -> Iterator[bytes]:
        """The chunks."""
        chunks = iter(self._stream)
        while True:
            try:
                chunk = self._worker.call(max(0.001, self._seconds()), lambda: next(chunks, _END))
            except TimeoutError:
                raise self._late() from None
            if chunk is _END:
                return
            yield chunk

    def close(self) -> None:
        """Close the body, unless its worker was left with it: then that closes it."""
        with contextlib.suppress(TimeoutError):
            self._worker.call(_CLOSING, self._stream.close)
        self._worker.end()


class AsyncBoundedStream:
    """`BoundedStream` for coroutines."""

    def __init__(self, stream: Any, left: Callable[[], float], late: Callable[[], Exception]) -> None:
        self._stream = stream
        self._seconds = left
        self._late = late

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks."""
        chunks = aiter(self._stream)
        while True:
            try:
                chunk = await within(max(0.001, self._seconds()), lambda: anext(chunks, _END))
            except TimeoutError:
                raise self._late() from None
            if chunk is _END:
                return
            yield chunk

    async def aclose(self) -> None:
        """Close the body."""
        await self._stream.aclose()
