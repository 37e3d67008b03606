"""The code that both transports share: everything between request and response except the sending."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from math import inf
from typing import Any, Final, TypeAlias

from idempotency.client.attempts import Attempts
from idempotency.client.operation import Operation, Rules
from idempotency.client.origins import origin_of
from idempotency.client.retry import Answer

__all__ = ["Call", "begin"]

_OPERATION: Final = "idempotency.operation"  # an extension of a request, which its redirects inherit

_Request: TypeAlias = Any  # of either library
_Response: TypeAlias = Any


def begin(
    rules: Rules, request: _Request, chance: Callable[[], float], monotonic: Callable[[], float]
) -> Call | None:
    """
    The call that *request* belongs to, with its key; None if it is not covered.

    Raises:
        httpx.RequestError: A redirect would send the key and the body to another origin.
    """
    origin = origin_of(request.url)
    operation: Operation | None = request.extensions.get(_OPERATION)
    if operation is not None and operation.continues_with(request, now=monotonic()):
        if not rules.may_go_to(operation, origin):
            if (refusal := rules.refusal(request.method, origin, has_body=_has_body(request))) is not None:
                raise _library_of(request).RequestError(refusal, request=request)
            for name in rules.unsafe(request.headers):
                del request.headers[name]
        attempts = operation.next_step(request)
    elif rules.covers(request.method):
        given = request.headers.get(rules.header)
        operation = rules.begin(request, origin, given=given, now=monotonic())
        # Kept in the request, so that a redirect or an authentication round belongs to the same operation.
        request.extensions = {**request.extensions, _OPERATION: operation}
        request.headers[rules.header] = operation.key
        attempts = operation.attempts
    else:
        return None
    return Call(request, operation, attempts, chance, monotonic)


def _has_body(request: _Request) -> bool:
    headers = request.headers
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _library_of(request: _Request) -> Any:
    # By the last base class before `object`, which is the library's own even if the caller made a subclass.
    return sys.modules[type(request).__mro__[-2].__module__.partition(".")[0]]


class Call:
    """
    One call, with the types of its library.

    Attributes:
        module: The library: `httpx` or `httpx2`.
        errors: The library's error for a failed attempt.
        seconds: The time that the current attempt may take.
    """

    module: Any

    def __init__(
        self,
        request: _Request,
        operation: Operation,
        attempts: Attempts,
        chance: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.module = _library_of(request)
        self.errors: type[Exception] = self.module.TransportError
        self.seconds: float = inf
        self._request = request
        self._operation = operation
        self._attempts = attempts
        self._chance = chance
        self._monotonic = monotonic
        self._content = b""  # the body of the last answer, if it was read ahead

    def has_unread_body(self) -> bool:
        """Whether the request body is a stream that has not been read."""
        try:
            self._request.content  # noqa: B018
        except self.module.RequestNotRead:
            return True
        return False

    def attempt(self) -> _Request:
        """
        The request for the next attempt: the same bytes, with timeouts cut to the time left.

        Raises:
            httpx.ReadTimeout: No time is left.
        """
        self._content = b""
        request = self._request
        left = self._attempts.begin(now=self._monotonic())
        if left is None:
            raise self.late()
        self.seconds = left
        given = request.extensions.get("timeout", {})
        cut = {
            name: min(seconds, left) if (seconds := given.get(name)) is not None else left
            for name in ("connect", "read", "write", "pool")
        }
        cut = {name: seconds if seconds < inf else None for name, seconds in cut.items()}
        return self.module.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "timeout": cut},
        )

    def left(self) -> float:
        """Seconds that the call may still take."""
        return self._attempts.left(now=self._monotonic())

    def late(self) -> Exception:
        """The error for an answer that did not arrive in time."""
        error: Exception = self.module.ReadTimeout(self._attempts.late(), request=self._request)
        return error

    def late_upload(self) -> Exception:
        """The error for a request body that its caller did not produce in time."""
        error: Exception = self.module.WriteTimeout(self._attempts.late_upload(), request=self._request)
        return error

    def after_error(self, error: Exception) -> float | None:
        """Seconds until the next attempt; None: raise *error* to the caller."""
        library = self.module
        of_the_request = isinstance(error, library.UnsupportedProtocol | library.LocalProtocolError)
        return self._attempts.after_error(
            error, now=self._monotonic(), chance=self._chance(), transient=not of_the_request
        )

    def after_response(self, response: _Response) -> float | None:
        """Seconds until the next attempt; None: return *response* to the caller."""
        answer = self._answer(response)
        self._operation.challenged = answer.status == 401
        return self._attempts.after_answer(
            answer, now=self._monotonic(), chance=self._chance(), date=datetime.now(UTC)
        )

    def is_read_ahead(self, response: _Response) -> bool:
        """See `Attempts.is_read_ahead`."""
        return self._attempts.is_read_ahead(self._answer(response))

    def is_bounded(self, response: _Response) -> bool:
        """See `Attempts.is_bounded`."""
        return self._attempts.is_bounded(self._answer(response))

    def whole(self, response: _Response, content: bytes) -> _Response:
        """*response* with the body that was read, still encoded as sent."""
        self._content = content
        return self._respond(response, self.module.ByteStream(content))

    def streamed(self, response: _Response, stream: Any, kind: type[Any]) -> _Response:
        """*response* with *stream* instead of its own."""
        return self._respond(response, self.mixed(stream, kind))

    def mixed(self, stream: Any, kind: type[Any]) -> Any:
        """*stream* as a stream of the library's *kind*."""
        stream.__class__ = type(type(stream).__name__, (type(stream), kind), {})
        return stream

    def _respond(self, response: _Response, stream: Any) -> _Response:
        return self.module.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    def _answer(self, response: _Response) -> Answer:
        return Answer(response.status_code, response.headers, self._content)
