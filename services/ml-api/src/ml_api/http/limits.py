"""
Limits on one request: how large its body may be, how long it may take to arrive, how long its handler may
run.

Each is pure ASGI and costs a request that keeps to it next to nothing. The limits on headers lie below
ASGI, in `ml_api.server.protocol`.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_api.http.problems import Problem, problem_response

__all__ = ["BODY_IS_HERE", "BodyLimit", "HandlerDeadline"]

BODY_IS_HERE = "ml_api.body_is_here"
"""
Is in the scope of a request whose body had arrived, all of it, before anybody asked: no clock is set for such a body.

Most are of this kind, and clocks would be a good part of what a replay costs. A server that does not say so loses
nothing but that time.
"""

_DRAIN_BYTES = (
    8  # times the limit: read and dropped, so that the client reads its 413 and not a connection reset
)
_DRAIN_SECONDS = 2.0
_CLOSE = {"Connection": "close"}


class BodyLimit:
    """
    Refuses a body over *max_bytes* with 413 and one that is not whole after *timeout* seconds with 408.

    A declared length is refused before anything is read; bytes are counted as they arrive, for a chunked body
    declares none. The verdict is raised out of `receive`, as a `Problem`, to whoever reads the body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout: float) -> None:
        self.app = app
        self._max_bytes, self._timeout = max_bytes, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _Body(receive, self._max_bytes, None if BODY_IS_HERE in scope else self._timeout)
        if _declared_length(scope) > self._max_bytes:
            if not _expects_continue(scope):  # such a client has not begun to send, and now will not
                await body.drain()
            problem = body.too_large()
            refusal = problem_response(problem.status, problem.slug, problem.detail, problem.headers)
            return await refusal(scope, receive, send)
        return await self.app(scope, body.receive, send)


class _Body:
    """The body of one request: what has been read, and until when the rest may arrive; None sets no clock."""

    def __init__(self, receive: Receive, max_bytes: int, timeout: float | None) -> None:
        self._receive, self._max_bytes, self._timeout = receive, max_bytes, timeout
        self._arrived, self._whole = 0, False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()  # waits for the disconnect, which has no deadline
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
        detail = f"The body is larger than {self._max_bytes} bytes; send fewer candles"
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


class HandlerDeadline:
    """
    Answers 504 when the handler has not begun its answer after *seconds* of its own time.

    Waiting for the body is the client's time and not counted. It belongs inside the idempotency middleware:
    a handler cut off there leaves a released key, one cut off outside a claim that nobody settles until its
    lease is over.
    """

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self.app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the handler against the clock; an answer that has begun may take its time."""
        loop, begun = asyncio.get_running_loop(), False

        async def receive_off_the_clock() -> Message:
            clock.reschedule(None)
            message = await receive()
            if not begun:
                clock.reschedule(loop.time() + self._seconds)
            return message

        async def send_and_stop_the_clock(message: Message) -> None:
            nonlocal begun
            if not begun:
                begun = True
                clock.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as clock:
                slow = BODY_IS_HERE not in scope
                await self.app(scope, receive_off_the_clock if slow else receive, send_and_stop_the_clock)
        except TimeoutError:
            if not clock.expired():
                raise  # the handler's own
            detail = f"The answer took longer than {self._seconds:g} s; send the request again"
            await problem_response(504, "handler-timeout", detail, {"Retry-After": "1"})(scope, receive, send)


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _expects_continue(scope: Scope) -> bool:
    return any(name == b"expect" for name, _ in scope["headers"])
