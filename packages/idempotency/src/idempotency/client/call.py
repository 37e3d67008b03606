"""One logical call, whichever library and colour sends it: its key, its attempts, its deadline and where it may go."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from math import inf
from typing import Any, Final, TypeAlias
from uuid import uuid4

from idempotency.client.origins import SAFE_HEADERS, is_allowed, origin_of, read_origins
from idempotency.client.retry import Retry, next_delay, parse_date, parse_retry_after, worth_retrying

__all__ = ["Call", "Sender", "quote_key", "uuid4_key"]

_HEADER: Final = "Idempotency-Key"
_READ_AHEAD: Final = 1_048_576  # bytes; a longer answer, or one of unknown length, is streamed
_TEXT = re.compile(r"[ -~]+")
_ORIGIN: Final = "idempotency.origin"  # an extension of a request, which its redirects inherit

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


class Sender:
    """What both transports share: which requests are theirs, and the state of each call."""

    def __init__(
        self,
        methods: Collection[str],
        retry: Retry,
        new_key: Callable[[], str],
        chance: Callable[[], float],
        monotonic: Callable[[], float],
        trusted_origins: Collection[str],
    ) -> None:
        self._trusted = read_origins(trusted_origins)
        self._methods = frozenset(method.upper() for method in methods)
        self._retry = retry
        self._new_key = new_key
        self._chance = chance
        self._monotonic = monotonic

    def begin(self, request: _Request) -> Call | None:
        """
        The call that *request* stands for, keyed; None where it is none of ours.

        Raises:
            httpx.RequestError: A redirect would hand a key and a body to another origin.
        """
        first = request.extensions.get(_ORIGIN)
        if first is not None and not is_allowed(first, origin_of(request.url), self._trusted):
            self._keep_back(request)
        if request.method not in self._methods:
            return None
        if first is None:
            request.extensions = {**request.extensions, _ORIGIN: origin_of(request.url)}
        if _HEADER not in request.headers:
            # In the request itself, so that a redirect or an authentication round is the same operation still.
            request.headers[_HEADER] = quote_key(self._new_key())
        return Call(request, self._retry, self._chance, self._monotonic)

    def _keep_back(self, request: _Request) -> None:
        """Take from a redirected request what was meant for its first origin; refuse one that is nothing without."""
        if request.method not in {"GET", "HEAD"}:
            raise _library_of(request).RequestError(
                f"a redirect would send this {request.method}, its Idempotency-Key and its body to "
                f"{request.url.scheme}://{request.url.host}, another origin than it was made for; nothing was "
                "sent. Send it there yourself, or name that origin in trusted_origins",
                request=request,
            )
        for name in list(request.headers):
            if name.lower() not in SAFE_HEADERS:
                del request.headers[name]


def _library_of(request: _Request) -> Any:
    # The class below `object`, so that a subclass of somebody's own is traced to its library.
    return sys.modules[type(request).__mro__[-2].__module__.partition(".")[0]]


class Call:
    """One logical call: its attempts so far, and whether there is another."""

    def __init__(
        self,
        request: _Request,
        retry: Retry,
        chance: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._library = _library_of(request)
        self._request = request
        self._retry = retry
        self._chance = chance
        self._monotonic = monotonic
        self._began = monotonic()
        self._attempts = 0
        self._content = b""  # of the last answer, where it was read ahead
        self.seconds = retry.timeout  # that the current attempt may take
        self.errors: type[Exception] = self._library.TransportError

    def attempt(self) -> _Request:
        """The request for the next attempt: the same bytes, its timeouts cut to the time that is left."""
        self._attempts += 1
        self._content = b""
        request, left = self._request, self.left()
        self.seconds = left
        given = request.extensions.get("timeout", {})
        cut = {
            name: min(seconds, left) if (seconds := given.get(name)) is not None else left
            for name in ("connect", "read", "write", "pool")
        }
        cut = {name: seconds if seconds < inf else None for name, seconds in cut.items()}
        return self._library.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "timeout": cut},
        )

    def left(self) -> float:
        """Seconds that the call may still take."""
        return max(0.001, self._retry.timeout - self._elapsed())

    def late(self) -> Exception:
        """The error for an answer that was not there in time."""
        error: Exception = self._library.ReadTimeout(
            f"no whole answer within {self._retry.timeout:g} s, the time for all attempts (Retry.timeout)",
            request=self._request,
        )
        return error

    def is_bounded(self, response: _Response) -> bool:
        """Whether the time of the call counts to the end of its answer: not for one that is meant to last."""
        kind: str = response.headers.get("content-type", "")
        return self._retry.timeout < inf and not kind.lower().startswith("text/event-stream")

    def streamed(self, response: _Response, kind: type[Any], stream: Any) -> _Response:
        """*response* with *stream*, of the library's *kind*, in place of its own."""
        mixed = type(type(stream).__name__, (type(stream), kind), {})
        stream.__class__ = mixed
        return self._library.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    @property
    def library(self) -> Any:
        """Httpx or httpx2."""
        return self._library

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
