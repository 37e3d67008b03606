"""Reads a request from a WSGI environment: its key, headers, path, and its body within limits."""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader, BytesIO, RawIOBase
from typing import Any
from urllib.parse import quote

from idempotency._core.errors import (
    IdempotencyError,
    IncompleteRequest,
    LengthRequired,
    MissingTenant,
    RequestTooLarge,
)
from idempotency._core.outcome import Headers
from idempotency._http.content_length import content_length
from idempotency._http.incoming_body import arriving, discard
from idempotency.wsgi.types import Environ

__all__ = ["BodyReader", "by_environ", "field_lines", "full_path", "headers_of"]


def by_environ(name: str) -> Callable[[Environ], str]:
    """
    A tenant from an entry that the server or an authentication middleware sets in the environment (`REMOTE_USER`).

    Use a name that only they set: a name that begins with `HTTP_` is a request header, which anybody can send.

    Raises:
        ValueError: *name* is a request header.

    The returned callable raises `MissingTenant` (400) if there is no such entry: different users must not share a
    tenant.

    >>> by_environ("REMOTE_USER")({"REMOTE_USER": "alice"})
    'alice'
    """
    if name.startswith("HTTP_"):
        raise ValueError(
            f"{name} is a request header, which anybody can send: name an entry that your authentication sets in the "
            "environment, such as REMOTE_USER, or write a callable that verifies the header"
        )

    def tenant(environ: Environ) -> str:
        value = environ.get(name)
        if not isinstance(value, str) or not value.strip():
            raise MissingTenant(f"{name} is not in the request's environment, so its user is not known")
        return value

    return tenant


def field_lines(environ: Environ, name: bytes) -> list[bytes]:
    """
    The field lines of the header *name*, given in lower case: none, or one.

    The server joins repeated lines with a comma. No key contains a comma, so two keys are refused; a list such as
    `Prefer` is read as one.
    """
    value = environ.get("HTTP_" + name.decode("ascii").upper().replace("-", "_"))
    return [] if value is None else [value.encode("latin-1")]


def headers_of(environ: Environ) -> Headers:
    """The request's headers, names in lower case. WSGI keeps neither their order nor repeated lines."""
    headers: Headers = []
    for name, value in environ.items():
        if not isinstance(value, str):
            continue
        if name.startswith("HTTP_"):
            name = name[5:]  # noqa: PLW2901
        elif name not in {"CONTENT_TYPE", "CONTENT_LENGTH"} or not value:
            continue
        headers.append((name.replace("_", "-").lower().encode("latin-1"), value.encode("latin-1")))
    return headers


def full_path(environ: Environ) -> str:
    """
    The path with the prefix of a mounted application, percent-encoded.

    WSGI gives the decoded path, so `%2F` and `/` are equal here; under ASGI they differ.
    """
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return quote(path.encode("latin-1"), safe="/%:@!$&'()*+,;=~")


class BodyReader:
    """
    Reads the body of a request once, and leaves the application a copy.

    Args:
        timeout: Seconds for the whole body, checked between two reads; only the server limits a single read.
    """

    def __init__(self, environ: Environ, *, timeout: float, monotonic: Callable[[], float]) -> None:
        self._environ = environ
        self._timeout = timeout
        self._monotonic = monotonic
        self._stream: _ReadAhead | None = None  # set from the first read until the body is complete
        self._body: bytes | None = None
        self._error: IdempotencyError | None = None

    def read(self, *, limit: int) -> bytes:
        """
        The whole body, of at most *limit* bytes.

        Raises:
            RequestTooLarge: The body is longer.
            RequestTimeout: The body did not end in time.
            IncompleteRequest: The client left before the end of its body.
            LengthRequired: The body has no length and the server does not mark its end, or its length is not a number.
        """
        if self._error is not None:
            raise self._error
        if self._body is None:
            try:
                self._body = self._read(limit)
            except IdempotencyError as error:
                self._error = error
                raise
            _replace_body(self._environ, self._body)
            self._stream = None
        elif len(self._body) > limit:
            raise RequestTooLarge(limit=limit)
        return self._body

    def _read(self, limit: int) -> bytes:
        environ = self._environ
        length = content_length(environ.get("CONTENT_LENGTH"))
        if length is None and not environ.get("wsgi.input_terminated"):
            if environ.get("HTTP_TRANSFER_ENCODING"):
                raise LengthRequired
            return b""  # PEP 3333: without a Content-Length there is no body to read
        # If nothing is claimed, the application still gets the bytes that were read here.
        self._stream = stream = _ReadAhead(environ["wsgi.input"], length)
        environ["wsgi.input"] = BufferedReader(stream)
        if length is not None and length > limit:
            raise RequestTooLarge(limit=limit)
        most = limit + 1 if length is None else length
        stream.ahead.extend(arriving(stream.receive, most, timeout=self._timeout, monotonic=self._monotonic))
        body = b"".join(stream.ahead)
        if length is not None and len(body) < length:
            raise IncompleteRequest
        if len(body) > limit:
            raise RequestTooLarge(limit=limit)
        return body

    @property
    def is_too_large(self) -> bool:
        """Whether the body was refused for its length, and part of it is unread."""
        return isinstance(self._error, RequestTooLarge)

    def discard(self, *, most: int) -> None:
        """
        Read and drop the rest of a body that was too large; the application may have read some or all of it.

        Args:
            most: The most bytes to read; the time limit is that of `read`.
        """
        assert self._stream is not None
        discard(self._stream.receive, most, timeout=self._timeout, monotonic=self._monotonic)


class _ReadAhead(RawIOBase):
    """
    A server's stream whose first bytes were read ahead; the application gets these bytes, then the rest.

    Args:
        left: The number of bytes in the stream; None: up to its end. Not every server ends the stream with the body, so
            reading more could wait for bytes that never come.
    Attributes:
        ahead: The chunks that were read ahead and that the application has not got yet.
    """

    def __init__(self, stream: Any, left: int | None) -> None:
        self._stream = stream
        self._left = left
        self.ahead: list[bytes] = []

    def receive(self, size: int) -> bytes:
        """At most *size* bytes from the server; none at the end of the body."""
        if self._left is not None:
            size = min(size, self._left)
        chunk: bytes = self._stream.read(size) if size else b""
        if self._left is not None:
            self._left -= len(chunk)
        return chunk

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = len(buffer)
        chunk = self.ahead.pop(0) if self.ahead else self.receive(size)
        if len(chunk) > size:
            self.ahead.insert(0, chunk[size:])
            chunk = chunk[:size]
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _replace_body(environ: Environ, body: bytes) -> None:
    """Let the application read *body* as if it had not been read before."""
    environ["wsgi.input"] = BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)  # the body is decoded, and now has a Content-Length
