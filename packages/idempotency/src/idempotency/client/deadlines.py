"""
Enforces deadlines: a call ends when its time is up, whatever the server still sends.

An HTTP library's timeouts bound each step, so that a server which sends a byte now and then is waited for without end.
A coroutine can be cancelled at a deadline; a blocking call cannot, so it is made in a thread that its caller can leave.
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

from idempotency._backends.base import running
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
    The time of a call is up.

    It is no `TimeoutError`: what is called raises those for timeouts of its own, which must reach the caller unchanged.
    """


async def within(seconds: float, function: Callable[[], Awaitable[T]]) -> T:
    """
    Returns the result of *function*; cancels it after *seconds*.

    Raises:
        DeadlineExceeded: The time is up.
    """
    if seconds == inf:
        return await function()

    async def call() -> tuple[bool, Any]:
        try:
            return True, await function()
        except TimeoutError as error:  # its own: handed out, so that it is not taken for the deadline's
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
    A daemon thread that makes one caller's blocking calls, one after the other.

    Once a call was left, the worker takes no more, and closes what that call was about.

    Attributes:
        was_left: Whether one was.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self.was_left: bool = False
        self._lock = threading.Lock()  # an answer is either handed over or left
        self._thread: threading.Thread | None = None

    def call(
        self, seconds: float, function: Callable[[], T], *, close: Callable[[], object] | None = None
    ) -> T:
        """
        Returns the result of *function*; without a deadline it runs in the calling thread.

        Args:
            close: What the worker calls when *function* is over, if it was left; by default `close` of its result.
        Raises:
            DeadlineExceeded: It took longer than *seconds*; it goes on alone.
        """
        if seconds == inf:
            return function()
        if self.was_left:
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
                    self.was_left = True
                    raise DeadlineExceeded from None
            succeeded, answer = answers.get()  # it came as the time ended
        except BaseException:  # interrupted
            with self._lock:
                self.was_left = True
                arrived = None if answers.empty() else answers.get()
            if arrived is not None:  # the worker handed it over before it was left, so it does not close it
                _close(arrived[1], close)
            raise
        if succeeded:
            result: T = answer
            return result
        raise answer

    def read(self, chunks: Iterable[bytes]) -> bytes:
        """The whole of *chunks*, in a call of this worker; once that was left, no more than the next chunk."""
        parts = []
        for chunk in chunks:
            parts.append(chunk)
            if self.was_left:
                break
        return b"".join(parts)

    def end(self) -> None:
        """Let the thread end, at once or when the call that was left is over."""
        if self._thread is not None:
            self._calls.put(None)
            self._calls, self._thread = SimpleQueue(), None  # for a call that is made all the same

    def _serve(self, calls: SimpleQueue[_Call | None]) -> None:
        while (call := calls.get()) is not None:
            function, close, answers = call
            try:
                answer: tuple[bool, Any] = (True, function())
            except BaseException as error:
                answer = (False, error)
            with self._lock:
                answers.put(answer)
                left = self.was_left
            if left:
                _close(answer[1], close)
                return
            del function, close, answers, answer, call  # hold nothing while there is nothing to do


def _close(answer: Any, close: Callable[[], object] | None) -> None:
    """Close what came of a call that was left, by *close* or, where there is none, its own `close`."""
    close = close or getattr(answer, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):  # nobody waits for it any more
            close()


class AsyncWorker:
    """`Worker` for coroutine functions: a call that is late is cancelled, so it needs no thread."""

    async def call(self, seconds: float, function: Callable[[], Awaitable[T]]) -> T:
        """See `within`."""
        return await within(seconds, function)

    async def read(self, chunks: AsyncIterable[bytes]) -> bytes:
        """The whole of *chunks*."""
        return b"".join([chunk async for chunk in chunks])

    def end(self) -> None:
        """Do nothing: there is no thread."""


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
        finalize(self, worker.end)  # where it is neither read to its end nor closed

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
        """Close the body, unless its worker was left with it: then that closes it."""
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
    A request's body that its caller makes in time, or the call ends.

    It is read in the caller's own thread, which nothing can interrupt: the time is looked at after each chunk.
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
    """`Upload` for coroutine functions, which ends also in the middle of a chunk."""

    def __init__(self, stream: Any, left: Callable[[], float], late: Callable[[], Exception]) -> None:
        super().__init__(stream, AsyncWorker(), left, late)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks; the time is looked at after the last, since a stream that never awaits cannot be cancelled."""
        async for chunk in super().__aiter__():
            yield chunk
        if self._seconds() <= LEAST:
            raise self._late()
