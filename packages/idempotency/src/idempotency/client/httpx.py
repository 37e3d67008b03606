"""
The client's half: transports for httpx and httpx2 that send one logical call until it is answered, under one key.

    client = httpx.Client(transport=IdempotencyTransport(httpx.HTTPTransport()))

Both libraries have the same shape, so one pair of classes serves them; which one it is shows in the request.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, overload
from uuid import uuid4

from idempotency._backends.base import running
from idempotency.client.retry import Retry, next_delay, parse_date, parse_retry_after, worth_retrying

if TYPE_CHECKING:
    from typing import Self

    import httpx
    import httpx2

    # To a type checker a transport of either library; at run time neither is needed, nor looked for.
    class _Transport(httpx.BaseTransport, httpx2.BaseTransport): ...  # type: ignore[misc]

    class _AsyncTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport): ...  # type: ignore[misc]
else:
    _Transport = _AsyncTransport = object

__all__ = ["AsyncIdempotencyTransport", "IdempotencyTransport", "Retry", "quote_key", "uuid4_key"]

_HEADER: Final = "Idempotency-Key"
_METHODS: Final = frozenset({"POST", "PATCH"})
_READ_AHEAD: Final = 1_048_576  # bytes; a longer answer, or one of unknown length, is streamed
_TEXT = re.compile(r"[ -~]+")

_Request: TypeAlias = Any  # of either library
_Response: TypeAlias = Any


def uuid4_key() -> str:
    """A random key (RFC 9562, 5.4): 122 bits that nobody else draws."""
    return str(uuid4())


def quote_key(key: str) -> str:
    r"""
    A key as the header carries it: a String (RFC 9651, 4.1.6), which draft -07 asks for.

    Raises:
        ValueError: Empty, or not printable ASCII.

    >>> quote_key("order-1"), quote_key('say "hi"')
    ('"order-1"', '"say \\"hi\\""')
    """
    if not _TEXT.fullmatch(key):
        raise ValueError("an idempotency key is one or more printable ASCII characters")
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Sender:
    """What both transports share: which requests are theirs, and the state of each call."""

    def __init__(
        self,
        methods: Collection[str],
        retry: Retry,
        new_key: Callable[[], str],
        chance: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._methods = frozenset(method.upper() for method in methods)
        self._retry = retry
        self._new_key = new_key
        self._chance = chance
        self._monotonic = monotonic

    def begin(self, request: _Request) -> _Call | None:
        """The call that *request* stands for, keyed; None where it is none of ours."""
        if request.method not in self._methods:
            return None
        if _HEADER not in request.headers:
            # In the request itself, so that a redirect or an authentication round is the same operation still.
            request.headers[_HEADER] = quote_key(self._new_key())
        return _Call(request, self._retry, self._chance, self._monotonic)


class _Call:
    """One logical call: its attempts so far, and whether there is another."""

    def __init__(
        self,
        request: _Request,
        retry: Retry,
        chance: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        # The class below `object`, so that a subclass of somebody's own is traced to its library.
        self._library: Any = sys.modules[type(request).__mro__[-2].__module__.partition(".")[0]]
        self._request = request
        self._retry = retry
        self._chance = chance
        self._monotonic = monotonic
        self._began = monotonic()
        self._attempts = 0
        self._content = b""  # of the last answer, where it was read ahead
        self.errors: type[Exception] = self._library.TransportError

    def attempt(self) -> _Request:
        """The request for the next attempt: the same bytes, its timeouts cut to the time that is left."""
        self._attempts += 1
        self._content = b""
        request, left = self._request, max(0.001, self._retry.timeout - self._elapsed())
        given = request.extensions.get("timeout", {})
        cut = {
            name: left if (seconds := given.get(name)) is None else min(seconds, left)
            for name in ("connect", "read", "write", "pool")
        }
        return self._library.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "timeout": cut},
        )

    def after_error(self, error: Exception) -> float | None:
        """Seconds until the next attempt, None where *error* is the caller's."""
        library = self._library
        if isinstance(error, library.UnsupportedProtocol | library.LocalProtocolError):
            return None  # the request itself is at fault
        delay = self._next_delay()
        if delay is None:
            error.add_note(
                f"gave up after {self._attempts} attempts under one Idempotency-Key, which the request now carries: "
                "the operation may have taken effect; send the same request object again to learn its outcome"
            )
        return delay

    def after_response(self, response: _Response) -> float | None:
        """Seconds until the next attempt, None where *response* is the caller's."""
        headers = response.headers
        if not worth_retrying(self._retry, response.status_code, headers, self._content):
            return None
        now = parse_date(headers.get("date")) or datetime.now(UTC)
        return self._next_delay(parse_retry_after(headers.get("retry-after"), now=now))

    def read_ahead(self, response: _Response) -> bool:
        """Whether the whole body is read before the answer counts, as a connection may be lost in its middle."""
        length = response.headers.get("content-length", "")
        return length.isdecimal() and int(length) <= _READ_AHEAD

    def whole(self, response: _Response, content: bytes) -> _Response:
        """*response* with the body that was read, still encoded as it was sent."""
        self._content = content
        return self._library.Response(
            response.status_code,
            headers=response.headers,
            stream=self._library.ByteStream(content),
            extensions=response.extensions,
        )

    def _next_delay(self, retry_after: float | None = None) -> float | None:
        return next_delay(
            self._retry,
            attempt=self._attempts,
            elapsed=self._elapsed(),
            chance=self._chance(),
            retry_after=retry_after,
        )

    def _elapsed(self) -> float:
        return self._monotonic() - self._began


class IdempotencyTransport(_Transport):
    """
    Sends each call under one key, again where its answer is lost or invites it, for `httpx.Client` and `httpx2.Client`.

    Every POST and PATCH gets an Idempotency-Key unless the caller set one; its body is read once and is the same in
    every attempt. Transport errors are retried, and the answers of `Retry.statuses`, at the pace of `Retry`, never
    before a Retry-After. A replayed answer is final, whatever its status, and so is the 409 of an operation that is
    done. When attempts or time are used up the last answer is returned, or the last error raised. Requests of other
    methods pass untouched.

    Args:
        transport: What sends; it is closed with this one.
        methods: The methods that are keyed and retried.
        retry: How often and how long.
        new_key: Makes keys, of printable ASCII characters.
        sleep: Lets seconds pass; injected by tests.
        chance: Draws from [0, 1); injected by tests.
        monotonic: Seconds; injected by tests.

    Cost: the request's body in memory, and the response's up to 1 MiB; longer ones and those of unknown length stream.
    """

    def __init__(
        self,
        transport: httpx.BaseTransport | httpx2.BaseTransport,
        *,
        methods: Collection[str] = _METHODS,
        retry: Retry = Retry(),  # noqa: B008
        new_key: Callable[[], str] = uuid4_key,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport: Any = transport
        self._sender = _Sender(methods, retry, new_key, chance, monotonic)
        self._sleep = sleep

    @overload
    def handle_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    def handle_request(self, request: httpx2.Request) -> httpx2.Response: ...
    def handle_request(self, request: _Request) -> _Response:
        """Send *request*; what the inner transport raises goes through once no attempt is left."""
        call = self._sender.begin(request)
        if call is None:
            return self._transport.handle_request(request)
        request.read()
        while True:
            try:
                response = self._whole(call, self._transport.handle_request(call.attempt()))
            except call.errors as error:
                delay = call.after_error(error)
                if delay is None:
                    raise
            else:
                delay = call.after_response(response)
                if delay is None:
                    return response
                response.close()
            self._sleep(delay)

    def _whole(self, call: _Call, response: _Response) -> _Response:
        if not call.read_ahead(response):
            return response
        try:
            return call.whole(response, b"".join(response.stream))
        finally:
            response.close()

    def close(self) -> None:
        """Close the inner transport."""
        self._transport.close()

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._transport.__exit__(exc_type, exc_value, traceback)


class AsyncIdempotencyTransport(_AsyncTransport):
    """`IdempotencyTransport` for `httpx.AsyncClient` and `httpx2.AsyncClient`, under asyncio and trio."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport,
        *,
        methods: Collection[str] = _METHODS,
        retry: Retry = Retry(),  # noqa: B008
        new_key: Callable[[], str] = uuid4_key,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport: Any = transport
        self._sender = _Sender(methods, retry, new_key, chance, monotonic)
        self._sleep = sleep

    @overload
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    async def handle_async_request(self, request: _Request) -> _Response:
        """See `IdempotencyTransport.handle_request`."""
        call = self._sender.begin(request)
        if call is None:
            return await self._transport.handle_async_request(request)
        await request.aread()
        while True:
            try:
                response = await self._whole(call, await self._transport.handle_async_request(call.attempt()))
            except call.errors as error:
                delay = call.after_error(error)
                if delay is None:
                    raise
            else:
                delay = call.after_response(response)
                if delay is None:
                    return response
                await response.aclose()
            await (self._sleep or running().sleep)(delay)

    async def _whole(self, call: _Call, response: _Response) -> _Response:
        if not call.read_ahead(response):
            return response
        try:
            return call.whole(response, b"".join([chunk async for chunk in response.stream]))
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)
