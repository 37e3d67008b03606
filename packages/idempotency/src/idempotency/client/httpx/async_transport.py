"""`AsyncIdempotencyTransport`: sends a call under one key with httpx or httpx2, for coroutine functions."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from idempotency._runtime.event_loop import running
from idempotency.client.deadlines import AsyncBoundedStream, AsyncUpload, AsyncWorker, DeadlineExceeded
from idempotency.client.httpx.call import Call, begin
from idempotency.client.keys import KEY_HEADER, uuid4_key
from idempotency.client.operation import METHODS, Rules
from idempotency.client.retry import Retry

if TYPE_CHECKING:
    from typing import Self

    import httpx
    import httpx2

    # For type checkers, a transport of both libraries; at run time neither is imported.
    class _AsyncTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport): ...  # type: ignore[misc]
else:
    _AsyncTransport = object

__all__ = ["AsyncIdempotencyTransport"]

_Request: TypeAlias = Any  # of either library
_Response: TypeAlias = Any


class AsyncIdempotencyTransport(_AsyncTransport):
    """
    Sends each call under one key, and sends it again if its answer is lost or asks for a retry.

    For `httpx.AsyncClient` and `httpx2.AsyncClient`, under asyncio and trio.

    Every POST and PATCH gets an Idempotency-Key unless the caller set one. Its body is read once and is the same in
    every attempt. Transport errors and the answers in `Retry.statuses` are retried with the delays of `Retry`, never
    before a Retry-After. A replay is final, whatever its status, and so is the 409 which says that the operation is
    done. When attempts or time are used up, the last answer is returned, or the last error raised. Requests of other
    methods pass untouched.

    Args:
        transport: The transport that sends; it is closed with this one.
        methods: The methods that are keyed and retried.
        retry: The limits on attempts and time.
        new_key: Makes a new key, of printable ASCII characters.
        trusted_origins: Origins that a request may be redirected to, beside its own, such as `https://eu.api.example`.
            Its key, its credentials and its body go nowhere else. A redirect to another origin that keeps the method
            and the body raises a `RequestError`, and nothing is sent; a redirect that changes to GET is followed
            without key and credentials.
        header: The name of the header that carries the key.
        quoted: Whether a new key is sent in quotes, as draft -07 requires. Use False for a server that accepts only
            keys without quotes, such as a UUID.
        sleep: Sleeps for the given seconds; injected by tests.
        chance: Returns a random number in [0, 1); injected by tests.
        monotonic: A clock in seconds; injected by tests.

    Raises:
        ValueError: *trusted_origins* contains something else than origins, or *header* cannot be a header name.

    Cost: the request body in memory, and the response body up to 1 MiB; longer ones and those of unknown length stream.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport,
        *,
        methods: Collection[str] = METHODS,
        retry: Retry = Retry(),  # noqa: B008
        new_key: Callable[[], str] = uuid4_key,
        trusted_origins: Collection[str] = (),
        header: str = KEY_HEADER,
        quoted: bool = True,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport: Any = transport
        self._rules = Rules(
            methods=methods,
            retry=retry,
            new_key=new_key,
            trusted_origins=trusted_origins,
            header=header,
            quoted=quoted,
        )
        self._sleep = sleep
        self._chance = chance
        self._monotonic = monotonic

    @overload
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    async def handle_async_request(self, request: _Request) -> _Response:
        """Send *request*; an error of the inner transport is raised when no attempt is left."""
        call = begin(self._rules, request, self._chance, self._monotonic)
        if call is None:
            return await self._transport.handle_async_request(request)
        if call.has_unread_body():
            request.stream = call.mixed(
                AsyncUpload(request.stream, call.left, call.late_upload), call.module.AsyncByteStream
            )
            await request.aread()
        while True:
            worker = AsyncWorker()
            try:
                response = await self._send(call, worker)
            except call.errors as error:
                worker.end()
                if (delay := call.after_error(error)) is None:
                    raise
            except BaseException:
                worker.end()
                raise
            else:
                try:
                    delay = call.after_response(response)
                except BaseException:  # of `Retry.retry_if`
                    await response.aclose()
                    raise
                if delay is None:
                    return response
                await response.aclose()
            await (self._sleep or running().sleep)(delay)

    async def _send(self, call: Call, worker: AsyncWorker) -> _Response:
        """Make one attempt; the deadline covers the answer, with its body if that is read ahead or bounded."""
        request = call.attempt()
        try:
            response = await worker.call(call.seconds, lambda: self._whole(call, worker, request))
        except DeadlineExceeded:
            raise call.late() from None
        if call.is_read_ahead(response) or not call.is_bounded(response):
            worker.end()
            return response
        return call.streamed(
            response,
            AsyncBoundedStream(response.stream, worker, call.left, call.late),
            call.module.AsyncByteStream,
        )

    async def _whole(self, call: Call, worker: AsyncWorker, request: _Request) -> _Response:
        response = await self._transport.handle_async_request(request)
        if not call.is_read_ahead(response):
            return response
        try:
            return call.whole(response, await worker.read(response.stream))
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
