"""
Limits on one request: the size of its body, the time for the body to arrive, and the time for work in a thread.

`ml_api.server.protocol` has the limits on headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_api.http.problems import Problem, problem_response

__all__ = ["BODY_COMPLETE", "BodyLimit", "limit_threads", "run_within"]

BODY_COMPLETE = "ml_api.body_complete"
"""
The server sets this key in the scope of a request if the whole body has arrived: then no timer is needed for the body.

Most requests are so, and a timer would be a good part of a replay's cost. With a server that does not set the key, only
that time is lost.
"""

_DRAIN_BYTES = 8  # times the limit: so much is read and dropped, so that the client gets 413 and not a reset
_DRAIN_SECONDS = 2.0
_CLOSE = {"Connection": "close"}

_THREADS = 2

T = TypeVar("T")


class BodyLimit:
    """
    Answers 413 to a body over *max_bytes*, and 408 to a body that is not complete after *timeout* seconds.

    A declared length over the limit is refused before reading. Bytes are also counted as they arrive, because a chunked
    body declares no length; then `receive` raises the `Problem`.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout: float) -> None:
        self.app = app
        self._max_bytes, self._timeout = max_bytes, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _Body(receive, self._max_bytes, None if BODY_COMPLETE in scope else self._timeout)
        if _declared_length(scope) > self._max_bytes:
            if not _expects_continue(scope):  # a client with `Expect: 100-continue` has not sent the body
                await body.drain()
            problem = body.too_large()
            refusal = problem_response(problem.status, problem.slug, problem.detail, problem.headers)
            return await refusal(scope, receive, send)
        return await self.app(scope, body.receive, send)


class _Body:
    """Counts and times the body of one request; *timeout* None sets no timer."""

    def __init__(self, receive: Receive, max_bytes: int, timeout: float | None) -> None:
        self._receive, self._max_bytes, self._timeout = receive, max_bytes, timeout
        self._arrived, self._whole = 0, False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()  # this waits for the disconnect, which has no deadline
        message = await (self._receive() if self._timeout is None else self._receive_within(self._timeout))
        self._note(message)
        if self._arrived > self._max_bytes:
            await self.drain()
            raise self.too_large()
        return message

    async def _receive_within(self, seconds: float) -> Message:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            detail = f"The body was not complete after {seconds:g} s; send the request again"
            raise Problem(408, "request-timeout", detail, _CLOSE) from None

    def too_large(self) -> Problem:
        detail = f"The body is larger than {self._max_bytes} bytes; send fewer candles or rows"
        return Problem(413, "content-too-large", detail, _CLOSE)

    async def drain(self) -> None:
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._whole and self._arrived <= _DRAIN_BYTES * self._max_bytes:
                    self._note(await self._receive())
        except TimeoutError:
            pass

    def _note(self, message: Message) -> None:
        self._arrived += len(message.get("body", b""))
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)


def limit_threads() -> None:
    """
    Limit how many threads of this event loop work at once; further work waits for one of them.

    The work only computes, so more threads finish it hardly sooner. But each of them delays the event loop, which waits
    for the lock of the interpreter like any thread: with the default of 40, a health check took seconds.
    """
    to_thread.current_default_thread_limiter().total_tokens = _THREADS


async def run_within(seconds: float, function: Callable[[], T]) -> T:
    """
    Call *function* in a thread, and return its result.

    Raises:
        Problem: 504: it took longer than *seconds*. The thread goes on, and its result is dropped.
    """
    try:
        async with asyncio.timeout(seconds) as clock:
            return await to_thread.run_sync(function, abandon_on_cancel=True)
    except TimeoutError:
        if not clock.expired():
            raise  # a TimeoutError of the function itself
        detail = f"The answer took longer than {seconds:g} s; send the request again"
        raise Problem(504, "handler-timeout", detail, {"Retry-After": "1"}) from None


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _expects_continue(scope: Scope) -> bool:
    return any(name == b"expect" for name, _ in scope["headers"])
