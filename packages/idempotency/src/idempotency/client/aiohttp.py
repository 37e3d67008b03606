"""
Idempotent calls with aiohttp: a client middleware that sends each call under one key until it is answered.

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

# The call of the last request: its timer, its operation, its error. aiohttp makes a new request for each step of a
# redirect, and these requests share only the timer of their call. The error is kept if aiohttp itself may repeat it.
_current: ContextVar[tuple[object, Operation, Exception | None] | None] = ContextVar(
    "idempotency_aiohttp_call", default=None
)

# Methods that aiohttp itself sends once more if the connection was lost.
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

    Every POST and PATCH gets an Idempotency-Key unless the caller set one. Its body is read once and is the same in
    every attempt, even if it is a file or an asynchronous generator. Calls are retried and ended as by
    `idempotency.client.IdempotencyTransport`. Requests of other methods pass untouched. The session's own timeout also
    covers all attempts together.

    Args:
        methods: The methods that are keyed and retried.
        retry: The limits on attempts and time.
        new_key: Makes a new key, of printable ASCII characters.
        trusted_origins: Origins that a request may be redirected to, beside its own; see `IdempotencyTransport`.
        header: The name of the header that carries the key.
        quoted: Whether a new key is sent in quotes; see `IdempotencyTransport`.
        sleep: Sleeps for the given seconds; injected by tests.
        chance: Returns a random number in [0, 1); injected by tests.
        monotonic: A clock in seconds; injected by tests.
    Raises:
        ValueError: *trusted_origins* contains something else than origins, or *header* cannot be a header name.

    A call raises `aiohttp.ClientError` if a redirect would send its key and its body to another origin, and
    `aiohttp.ServerTimeoutError` if `Retry.timeout` is over. Cost: the request body in memory, and the response body up
    to 1 MiB; longer ones and those of unknown length stream.
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
                # Set again after each attempt, because an inner middleware may have made a call of its own.
                _current.set((request._timer, operation, ended))  # noqa: SLF001
            await sleep(delay)

    return middleware


async def _begin(
    rules: Rules, request: aiohttp.ClientRequest, monotonic: Callable[[], float]
) -> tuple[Operation, Attempts] | None:
    """The call that *request* belongs to, keyed and buffered, and the attempts of this step; None if not covered."""
    origin = origin_of(request.url)
    current = _current.get()
    if current is not None and current[0] is request._timer:  # noqa: SLF001
        _, operation, ended = current
        if ended is not None:  # aiohttp repeats a request whose attempts are used up
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
    """Read the body once: a generator or a file would be empty for the second attempt."""
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
    """Make one attempt; the deadline covers the answer, with its body if that is read ahead or bounded."""
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
    """Make `response.content` readable again, for callers that do not use `response.read()`."""
    loop = asyncio.get_running_loop()
    content = aiohttp.StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    content.feed_data(body)
    content.feed_eof()
    response.content = content


def _end_late(response: aiohttp.ClientResponse, seconds: float, message: str) -> None:
    """Let a body that has not ended after *seconds* raise `ServerTimeoutError` for its reader."""
    weak = ref(response)  # so that the timer does not keep a response that nobody reads

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
    # After the session's total timeout aiohttp raises a bare TimeoutError, in every later attempt too.
    is_total_timeout = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError)
    return not is_total_timeout and not isinstance(error, _FINAL)


def _answer(response: aiohttp.ClientResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, response._body or b"")  # noqa: SLF001  # None until it is read
