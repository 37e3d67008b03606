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
    A tenant from what the server or an authentication middleware left in the environment, such as `REMOTE_USER`.

    Use a name that only they set: one that begins with `HTTP_` is a request header, which anybody can send.

    Raises:
        ValueError: *name* is a request header.

    The callable raises `MissingTenant` (400) where nothing is there: strangers must not share a tenant.

    >>> by_environ("REMOTE_USER")({"REMOTE_USER": "alice"})
    'alice'
    """
    if name.startswith("HTTP_"):
        raise ValueError(
            f"{name} is a request header, which anybody can send: name what your authentication leaves in the "
            "environment, such as REMOTE_USER, or write a callable that verifies the header"
        )

    def tenant(environ: Environ) -> str:
        value = environ.get(name)
        if not isinstance(value, str) or not value.strip():
            raise MissingTenant(f"{name} is not in the request's environment: who sends it is not known")
        return value

    return tenant


def field_lines(environ: Environ, name: bytes) -> list[bytes]:
    """
    The field lines of the header *name*, which is in lower case: none, or all in one.

    A server joins repeated lines with a comma before WSGI sees them. No key holds a comma, so two keys are refused;
    a list such as `Prefer` is read as one.
    """
    value = environ.get("HTTP_" + name.decode("ascii").upper().replace("-", "_"))
    return [] if value is None else [value.encode("latin-1")]


def headers_of(environ: Environ) -> Headers:
    """The request's headers, names in lower case. WSGI keeps neither their order nor their repetitions."""
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

    WSGI hands it over decoded, so `%2F` and `/` are one here; under ASGI they differ.
    """
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return quote(path.encode("latin-1"), safe="/%:@!$&'()*+,;=~")


class BodyReader:
    """
    Reads the body of a request once, and leaves the application a copy.

    Args:
        timeout: Seconds, looked at between two reads; a single read is bounded by the server alone.
    """

    def __init__(self, environ: Environ, *, timeout: float, monotonic: Callable[[], float]) -> None:
        self._environ = environ
        self._timeout = timeout
        self._monotonic = monotonic
        self._stream: _ReadAhead | None = None  # from its first read until the body is whole
        self._body: bytes | None = None
        self._error: IdempotencyError | None = None

    def read(self, *, limit: int) -> bytes:
        """
        The whole body, of *limit* bytes at most.

        Raises:
            RequestTooLarge: It is longer.
            RequestTimeout: Not whole in time.
            IncompleteRequest: The client left before its body was whole.
            LengthRequired: It has no length, and the server does not say where it ends; or one that is no number.
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
        # What was read is the application's all the same, should nothing be claimed.
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
        """Whether it was refused for its length, with a part of it unread."""
        return isinstance(self._error, RequestTooLarge)

    def discard(self, *, most: int) -> None:
        """
        Read what still comes of a body that was too large, and drop it; the application may have read a part, or all.

        Args:
            most: Bytes; the time is bounded as that of `read` is.
        """
        assert self._stream is not None
        discard(self._stream.receive, most, timeout=self._timeout, monotonic=self._monotonic)


class _ReadAhead(RawIOBase):
    """
    The stream of a server, of which some bytes were read ahead of the application: it gets these, then the rest.

    Args:
        left: How many bytes the server is to give; None: all, to the end of its stream. Not every server ends that with
            the body: to ask for more would wait for bytes that never come.
    Attributes:
        ahead: The parts that were read, and that the application has not got.
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
    """Let the application read *body* as if nobody had read it before."""
    environ["wsgi.input"] = BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)  # it was undone; both together would contradict each other
