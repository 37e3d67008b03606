# Generated from async_transport.py by scripts/unasync: edit that file, not this one.
"""`IdempotencyTransport`: one logical call under one key by httpx and httpx2, for plain functions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from idempotency.client.deadlines import BoundedStream, DeadlineExceeded, Upload, Worker
from idempotency.client.httpx.call import Call, begin
from idempotency.client.keys import KEY_HEADER, uuid4_key
from idempotency.client.operation import METHODS, Rules
from idempotency.client.retry import Retry

if TYPE_CHECKING:
    from typing import Self

    import httpx
    import httpx2

    # To a type checker a transport of either library; at run time neither is needed, nor looked for.
    class _Transport(httpx.BaseTransport, httpx2.BaseTransport): ...  # type: ignore[misc]
else:
    _Transport = object

__all__ = ["IdempotencyTransport"]

_Request: TypeAlias = Any  # of either library
_Response: TypeAlias = Any


class IdempotencyTransport(_Transport):
    """
    Sends each call under one key, again where its answer is lost or invites it.

    For `httpx.Client` and `httpx2.Client`.

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
        trusted_origins: Where a request may be redirected to beside its own origin, such as `https://eu.api.example`:
            its key, its credentials and its body go nowhere else. A redirect to another origin that keeps method and
            body is a `RequestError`, and nothing is sent; one that is followed by GET carries neither key nor
            credentials.
        header: The name of the header that carries the key.
        quoted: Whether a key that is made is sent in quotes, as draft -07 asks. False is for a server that takes it
            bare, such as one that wants a UUID.
        sleep: Lets seconds pass; injected by tests.
        chance: Draws from [0, 1); injected by tests.
        monotonic: Seconds; injected by tests.

    Raises:
        ValueError: *trusted_origins* holds what is no origin, or *header* is no name of a header.

    Cost: the request's body in memory, and the response's up to 1 MiB; longer ones and those of unknown length stream.
    A call has a thread of its own, since a blocking read cannot be ended when `Retry.timeout` is
    over; a thread that was left ends with the next part of an answer, or with the transport's own
    timeout.
    """

    def __init__(
        self,
        transport: httpx.BaseTransport | httpx2.BaseTransport,
        *,
        methods: Collection[str] = METHODS,
        retry: Retry = Retry(),  # noqa: B008
        new_key: Callable[[], str] = uuid4_key,
        trusted_origins: Collection[str] = (),
        header: str = KEY_HEADER,
        quoted: bool = True,
        sleep: Callable[[float], None] | None = None,
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
    def handle_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    def handle_request(self, request: httpx2.Request) -> httpx2.Response: ...
    def handle_request(self, request: _Request) -> _Response:
        """Send *request*; what the inner transport raises goes through once no attempt is left."""
        call = begin(self._rules, request, self._chance, self._monotonic)
        if call is None:
            return self._transport.handle_request(request)
        if call.has_unread_body():
            request.stream = call.mixed(
                Upload(request.stream, call.left, call.late_upload), call.module.SyncByteStream
            )
            request.read()
        while True:
            worker = Worker()
            try:
                response = self._send(call, worker)
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
                    response.close()
                    raise
                if delay is None:
                    return response
                response.close()
            (self._sleep or time.sleep)(delay)

    def _send(self, call: Call, worker: Worker) -> _Response:
        """One attempt: its answer in time, to the last byte where it is read ahead or is to be."""
        request = call.attempt()
        try:
            response = worker.call(call.seconds, lambda: self._whole(call, worker, request))
        except DeadlineExceeded:
            raise call.late() from None
        if call.is_read_ahead(response) or not call.is_bounded(response):
            worker.end()
            return response
        return call.streamed(
            response,
            BoundedStream(response.stream, worker, call.left, call.late),
            call.module.SyncByteStream,
        )

    def _whole(self, call: Call, worker: Worker, request: _Request) -> _Response:
        response = self._transport.handle_request(request)
        if not call.is_read_ahead(response):
            return response
        try:
            return call.whole(response, worker.read(response.stream))
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
