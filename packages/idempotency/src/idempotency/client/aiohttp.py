"""
Idempotent calls by aiohttp: a client middleware that sends each until it is answered, under one key.

    session = aiohttp.ClientSession(middlewares=[idempotency_middleware()])

Needs the extra `aiohttp`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from datetime import UTC, datetime
from math import inf
from typing import Any
from weakref import ref

from idempotency._runtime.extras import missing

try:
    import aiohttp
except ModuleNotFoundError as _error:
    raise missing("aiohttp", "idempotency_middleware", _error) from _error

from aiohttp.base_protocol import BaseProtocol

from idempotency.client.attempts import LEAST, Attempts
from idempotency.client.deadlines import DeadlineExceeded, within
from idempotency.client.keys import KEY_HEADER, quote_key, uuid4_key
from idempotency.client.operation import METHODS, Operation, Rules
from idempotency.client.origins import origin_of
from idempotency.client.retry import Answer, Retry

__all__ = ["Retry", "idempotency_middleware", "quote_key", "uuid4_key"]

_FINAL = (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL)

# aiohttp makes a new request for each step of a redirect, and all that these share is the timer of their call.
# The error is the one that the step ended with, where aiohttp itself may repeat it.
_current: ContextVar[tuple[object, Operation, Exception | None] | None] = ContextVar(
    "idempotency_aiohttp_call", default=None
)

# Methods that aiohttp itself sends once more where the connection was lost.
_REPEATED = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


def idempotency_middleware(
    *,
    methods: Collection[str] = METHODS,
    retry: Retry = Retry(),  # noqa: B008
    new_key: Callable[[], str] = uuid4_key,
    trusted_origins: Collection[str] = (),
    header: str = KEY_HEADER,
    quoted: bool = True,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    chance: Callable[[], float] = random.random,
    monotonic: Callable[[], float] = time.monotonic,
) -> aiohttp.ClientMiddlewareType:
    """
    A middleware for `aiohttp.ClientSession`: put it first, so that the others act on each attempt.

    Every POST and PATCH gets an Idempotency-Key unless the caller set one; its body is read once and is the same in
    every attempt, also where it is a file or an asynchronous generator. What is retried, and when a call ends, is as
    for `idempotency.client.IdempotencyTransport`. Requests of other methods pass untouched. The session's own timeout
    holds for all attempts together, too.

    Args:
        methods: The methods that are keyed and retried.
        retry: How often and how long.
        new_key: Makes keys, of printable ASCII characters.
        trusted_origins: Where a request may be redirected to beside its own origin; see `IdempotencyTransport`.
        header: The name of the header that carries the key.
        quoted: Whether a key that is made is sent in quotes; see `IdempotencyTransport`.
        sleep: Lets seconds pass; injected by tests.
        chance: Draws from [0, 1); injected by tests.
        monotonic: Seconds; injected by tests.
    Raises:
        ValueError: *trusted_origins* holds what is no origin, or *header* is no name of a header.

    A call raises `aiohttp.ClientError` where a redirect would hand its key and its body to another origin, and
    `aiohttp.ServerTimeoutError` where `Retry.timeout` is over. Cost: the body of the request in memory, and the
    answer's up to 1 MiB; longer ones and those of unknown length stream.
    """
    rules = Rules(
        methods=methods,
        retry=retry,
        new_key=new_key,
        trusted_origins=trusted_origins,
        header=header,
        quoted=quoted,
    )

    async def middleware(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        begun = await _begin(rules, request, monotonic)
        if begun is None:
            return await handler(request)
        operation, attempts = begun
        while True:
            ended: Exception | None = None
            try:
                response = await _send(request, handler, attempts, monotonic)
            except (aiohttp.ClientError, OSError) as error:
                delay = attempts.after_error(
                    error, now=monotonic(), chance=chance(), transient=_is_transient(error)
                )
                if delay is None:
                    ended = error if request.method in _REPEATED else None
                    raise
            else:
                try:
                    delay = attempts.after_answer(
                        _answer(response), now=monotonic(), chance=chance(), date=datetime.now(UTC)
                    )
                except BaseException:  # of `Retry.retry_if`
                    response.close()
                    raise
                if delay is None:
                    return response
                response.close()
            finally:
                # Also after it: a middleware that stands inside may have made a call of its own in between.
                _current.set((request._timer, operation, ended))  # noqa: SLF001
            await sleep(delay)

    return middleware


async def _begin(
    rules: Rules, request: aiohttp.ClientRequest, monotonic: Callable[[], float]
) -> tuple[Operation, Attempts] | None:
    """
    The call that *request* is part of, keyed and buffered, and the attempts of this step of it; None where it is none
    of ours.
    """
    origin = origin_of(request.url)
    current = _current.get()
    if current is not None and current[0] is request._timer:  # noqa: SLF001
        _, operation, ended = current
        if ended is not None:  # aiohttp repeats what has had all of its attempts
            _current.set(None)
            raise ended
        if not rules.may_go_to(operation, origin):
            if (refusal := rules.refusal(request.method, origin, has_body=bool(request.body))) is not None:
                raise aiohttp.ClientError(refusal)
            for name in rules.unsafe(list(request.headers)):
                request.headers.popall(name, None)
        elif rules.covers(request.method):
            request.headers[rules.header] = operation.key
        return operation, operation.attempts.redirected()
    if not rules.covers(request.method):
        return None
    operation = rules.begin(request, origin, given=request.headers.get(rules.header), now=monotonic())
    request.headers[rules.header] = operation.key
    await _buffer(request, operation.attempts, monotonic)
    return operation, operation.attempts


async def _buffer(request: aiohttp.ClientRequest, attempts: Attempts, monotonic: Callable[[], float]) -> None:
    """Read the body once: an asynchronous generator is empty for the second attempt, and a file at its end."""
    body: Any = request.body
    if not body or isinstance(body, aiohttp.BytesPayload):
        return
    try:
        content = await within(attempts.left(now=monotonic()), body.as_bytes)
    except DeadlineExceeded:
        raise aiohttp.ServerTimeoutError(attempts.late_upload()) from None
    if attempts.left(now=monotonic()) <= LEAST:
        raise aiohttp.ServerTimeoutError(attempts.late_upload())
    await request.update_body(content)


async def _send(
    request: aiohttp.ClientRequest,
    handler: aiohttp.ClientHandlerType,
    attempts: Attempts,
    monotonic: Callable[[], float],
) -> aiohttp.ClientResponse:
    """One attempt: its answer in time, to the last byte where it is read ahead or is to be."""
    seconds = attempts.begin(now=monotonic())
    if seconds is None:
        raise aiohttp.ServerTimeoutError(attempts.late())

    async def send() -> aiohttp.ClientResponse:
        response = await handler(request)
        if attempts.is_read_ahead(_answer(response)):
            try:
                _give_back(response, await response.read())
            except BaseException:
                response.close()
                raise
        return response

    try:
        response = await within(seconds, send)
    except DeadlineExceeded:
        raise aiohttp.ServerTimeoutError(attempts.late()) from None
    answer = _answer(response)
    if not attempts.is_read_ahead(answer) and attempts.is_bounded(answer):
        _end_late(response, attempts.left(now=monotonic()), attempts.late())
    return response


def _give_back(response: aiohttp.ClientResponse, body: bytes) -> None:
    """Have `response.content` be read once more, by whoever does not use `response.read()`."""
    loop = asyncio.get_running_loop()
    content = aiohttp.StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    content.feed_data(body)
    content.feed_eof()
    response.content = content


def _end_late(response: aiohttp.ClientResponse, seconds: float, message: str) -> None:
    """End a body that is still coming in *seconds*: its reader gets a `ServerTimeoutError`."""
    weak = ref(response)  # so that nothing is kept for a body that nobody reads

    def end() -> None:
        late = weak()
        if late is not None and not late.content.is_eof():
            late.content.set_exception(aiohttp.ServerTimeoutError(message))
            late.close()

    if seconds < inf:
        timer = asyncio.get_running_loop().call_later(seconds, end)
        response.content.on_eof(timer.cancel)


def _is_transient(error: aiohttp.ClientError | OSError) -> bool:
    """Whether another attempt may succeed."""
    # Once the session's total timeout is over, aiohttp raises a bare TimeoutError in this and in every later attempt.
    is_total_timeout = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError)
    return not is_total_timeout and not isinstance(error, _FINAL)


def _answer(response: aiohttp.ClientResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, response._body or b"")  # noqa: SLF001  # set once it was read
