"""What a WSGI environment says of a request: its key, its headers, its path, and its body, read within bounds."""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader, BytesIO, RawIOBase
from typing import Any, Final
from urllib.parse import quote

from idempotency._core.errors import (
    IdempotencyError,
    IncompleteRequest,
    LengthRequired,
    MissingTenant,
    RequestTimeout,
    RequestTooLarge,
)
from idempotency._core.outcome import Headers
from idempotency.wsgi.types import Environ

__all__ = ["BodyReader", "by_environ", "full_path", "headers_of", "key_lines"]

_CHUNK: Final = 65_536  # bytes asked of the server at a time


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


def key_lines(environ: Environ, name: bytes) -> list[bytes]:
    """
    The field lines of the header *name*, in lower case, which carries a key: none or one.

    A server joins repeated lines with a comma before WSGI sees them, and no single key holds one: they are refused.
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
        self._body: bytes | None = None
        self._error: IdempotencyError | None = None

    def read(self, *, limit: int) -> bytes:
        """
        The whole body, of *limit* bytes at most.

        Raises:
            RequestTooLarge: It is longer.
            RequestTimeout: Not whole in time.
            IncompleteRequest: The client left before its body was whole.
            LengthRequired: It has no length, and the server does not say where it ends.
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
        elif len(self._body) > limit:
            raise RequestTooLarge(limit=limit)
        return self._body

    def _read(self, limit: int) -> bytes:
        environ = self._environ
        declared = environ.get("CONTENT_LENGTH") or ""
        length = int(declared) if declared.isascii() and declared.isdigit() else None
        if length is None and not environ.get("wsgi.input_terminated"):
            if environ.get("HTTP_TRANSFER_ENCODING"):
                raise LengthRequired
            return b""  # PEP 3333: without a Content-Length there is no body to read
        if length is not None and length > limit:
            raise RequestTooLarge(limit=limit)
        stream = environ["wsgi.input"]
        chunks: list[bytes] = []
        # What was read is the application's all the same, should nothing be claimed.
        environ["wsgi.input"] = BufferedReader(_Prefixed(chunks, stream))
        self._read_stream(stream, limit + 1 if length is None else length, chunks)
        body = b"".join(chunks)
        if length is not None and len(body) < length:
            raise IncompleteRequest
        if len(body) > limit:
            raise RequestTooLarge(limit=limit)
        return body

    def _read_stream(self, stream: Any, most: int, chunks: list[bytes]) -> None:
        until = self._monotonic() + self._timeout
        while most > 0:
            if self._monotonic() > until:
                raise RequestTimeout(seconds=self._timeout)
            chunk = stream.read(min(most, _CHUNK))
            if not chunk:
                break
            chunks.append(chunk)
            most -= len(chunk)


class _Prefixed(RawIOBase):
    """What was read of a stream already, then the rest of it."""

    def __init__(self, chunks: list[bytes], stream: Any) -> None:
        self._chunks = chunks
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        chunk = self._chunks.pop(0) if self._chunks else self._stream.read(len(buffer))
        size = len(buffer)
        if len(chunk) > size:
            self._chunks.insert(0, chunk[size:])
            chunk = chunk[:size]
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _replace_body(environ: Environ, body: bytes) -> None:
    """Let the application read *body* as if nobody had read it before."""
    environ["wsgi.input"] = BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)  # it was undone; both together would contradict each other
