"""
Enforces deadlines: a call ends when its time is over, whatever the server still sends.

The timeouts of an HTTP library limit single steps, so a server that sends one byte now and then could hold a call for
ever. A coroutine can be cancelled at its deadline. A blocking call cannot, so it runs in a thread, and the caller stops
waiting for that thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextvars import copy_context
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar
from weakref import finalize

from idempotency._runtime.event_loop import running
from idempotency.client.attempts import LEAST

__all__ = [
    "AsyncBoundedStream",
    "AsyncUpload",
    "AsyncWorker",
    "BoundedStream",
    "DeadlineExceeded",
    "Upload",
    "Worker",
    "within",
]

T = TypeVar("T")
_Call: TypeAlias = "tuple[Callable[[], Any], Callable[[], object] | None, SimpleQueue[tuple[bool, Any]]]"
_END: Final[Any] = object()
_CLOSING: Final = 1.0  # s


class DeadlineExceeded(Exception):
    """
    The time of a call is over.

    It is not a `TimeoutError`, because the called function's own `TimeoutError` must reach the caller unchanged.
    """


async def within(seconds: float, function: Callable[[], Awaitable[T]]) -> T:
    """
    Returns the result of *function*; cancels it after *seconds*.

    Raises:
        DeadlineExceeded: The time is over.
    """
    if seconds == inf:
        return await function()

    async def call() -> tuple[bool, Any]:
        try:
            return True, await function()
        except TimeoutError as error:  # the function's own: returned, to tell it from the deadline's
            return False, error

    try:
        succeeded, answer = await running().within(seconds, call)
    except TimeoutError:
        raise DeadlineExceeded from None
    if not succeeded:
        raise answer
    result: T = answer
    return result


class Worker:
    """
    A daemon thread that makes the blocking calls of one caller, one after another.

    A caller abandons a call when its time is over. Then the worker takes no more calls, and closes the result of the
    abandoned one.

    Attributes:
        was_abandoned: Whether a call was abandoned.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self.was_abandoned: bool = False
        self._lock = threading.Lock()  # a result is either returned to the caller or abandoned, never both
        self._thread: threading.Thread | None = None

    def call(
        self, seconds: float, function: Callable[[], T], *, close: Callable[[], object] | None = None
    ) -> T:
        """
        Returns the result of *function*; without a deadline it runs in the calling thread.

        Args:
            close: Called by the worker after an abandoned *function* has ended; by default `close` of its result.
        Raises:
            DeadlineExceeded: *function* takes longer than *seconds*; it is abandoned and goes on in its thread.
        """
        if seconds == inf:
            return function()
        if self.was_abandoned:
            raise DeadlineExceeded
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, args=[self._calls], name="idempotency-client", daemon=True
            )
            self._thread.start()
        answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        context = copy_context()
        try:
            self._calls.put((lambda: context.run(function), close, answers))
            succeeded, answer = answers.get(timeout=seconds)
        except Empty:
            with self._lock:
                if answers.empty():
                    self.was_abandoned = True
                    raise DeadlineExceeded from None
            succeeded, answer = answers.get()  # it came as the time ended
        except BaseException:  # interrupted
            with self._lock:
                self.was_abandoned = True
                arrived = None if answers.empty() else answers.get()
            if arrived is not None:  # the worker returned it before the interrupt, so it will not close it
                _close(arrived[1], close)
            raise
        if succeeded:
            result: T = answer
            return result
        raise answer

    def read(self, chunks: Iterable[bytes]) -> bytes:
        """All of *chunks*, joined, within a call of this worker; stops once that call is abandoned."""
        parts = []
        for chunk in chunks:
            parts.append(chunk)
            if self.was_abandoned:
                break
        return b"".join(parts)

    def end(self) -> None:
        """Let the thread end, at once or when an abandoned call is over."""
        if self._thread is not None:
            self._calls.put(None)
            self._calls, self._thread = SimpleQueue(), None  # another call would start a new thread

    def _serve(self, calls: SimpleQueue[_Call | None]) -> None:
        while (call := calls.get()) is not None:
            function, close, answers = call
            try:
                answer: tuple[bool, Any] = (True, function())
            except BaseException as error:
                answer = (False, error)
            with self._lock:
                answers.put(answer)
                left = self.was_abandoned
            if left:
                _close(answer[1], close)
                return
            del function, close, answers, answer, call  # keep nothing alive while waiting for the next call


def _close(answer: Any, close: Callable[[], object] | None) -> None:
    """Close the result of an abandoned call, by *close* or, if that is None, by the result's own `close`."""
    close = close or getattr(answer, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):  # nobody waits for an abandoned call
            close()


class AsyncWorker:
    """`Worker` for coroutine functions: a late call is cancelled, so no thread is needed."""

    async def call(self, seconds: float, function: Callable[[], Awaitable[T]]) -> T:
        """See `within`."""
        return await within(seconds, function)

    async def read(self, chunks: AsyncIterable[bytes]) -> bytes:
        """All of *chunks*, joined."""
        return b"".join([chunk async for chunk in chunks])

    def end(self) -> None:
        """Do nothing: there is no thread."""


class BoundedStream:
    """
    A response body under a deadline; mixed into a library's `SyncByteStream`.

    Args:
        stream: The body.
        worker: The worker of the call; it ends with the stream.
        left: Returns the seconds until the deadline.
        late: Makes the error to raise after the deadline.
    """

    def __init__(
        self, stream: Any, worker: Worker, left: Callable[[], float], late: Callable[[], Exception]
    ) -> None:
        self._stream = stream
        self._worker = worker
        self._seconds = left
        self._late = late
        finalize(self, worker.end)  # for a body that is neither read to its end nor closed

    def __iter__(self) -> Iterator[bytes]:
        """The chunks."""
        chunks = iter(self._stream)
        while True:
            try:
                chunk = self._worker.call(
                    self._seconds(), lambda: next(chunks, _END), close=getattr(self._stream, "close", None)
                )
            except DeadlineExceeded:
                raise self._late() from None
            if chunk is _END:
                return
            yield chunk

    def close(self) -> None:
        """Close the body, unless its read was abandoned: then the worker closes it."""
        try:
            with contextlib.suppress(DeadlineExceeded):
                self._worker.call(_CLOSING, self._stream.close)
        finally:
            self._worker.end()


class AsyncBoundedStream:
    """`BoundedStream` for coroutine functions."""

    def __init__(
        self, stream: Any, worker: AsyncWorker, left: Callable[[], float], late: Callable[[], Exception]
    ) -> None:
        self._stream = stream
        self._worker = worker
        self._seconds = left
        self._late = late

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks."""
        chunks = aiter(self._stream)
        while True:
            try:
                chunk = await self._worker.call(self._seconds(), lambda: anext(chunks, _END))
            except DeadlineExceeded:
                raise self._late() from None
            if chunk is _END:
                return
            yield chunk

    async def aclose(self) -> None:
        """Close the body."""
        await self._stream.aclose()


class Upload:
    """
    A request body under a deadline.

    It is read in the caller's own thread, which nothing can interrupt: the deadline is checked after each chunk.
    """

    def __init__(self, stream: Any, left: Callable[[], float], late: Callable[[], Exception]) -> None:
        self._stream = stream
        self._seconds = left
        self._late = late

    def __iter__(self) -> Iterator[bytes]:
        """The chunks."""
        for chunk in self._stream:
            if self._seconds() <= LEAST:
                raise self._late()
            yield chunk
        if self._seconds() <= LEAST:
            raise self._late()


class AsyncUpload(AsyncBoundedStream):
    """`Upload` for coroutine functions: the deadline can also end the wait for a chunk."""

    def __init__(self, stream: Any, left: Callable[[], float], late: Callable[[], Exception]) -> None:
        super().__init__(stream, AsyncWorker(), left, late)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks; checks the deadline after the last, since a stream that never awaits cannot be cancelled."""
        async for chunk in super().__aiter__():
            yield chunk
        if self._seconds() <= LEAST:
            raise self._late()
