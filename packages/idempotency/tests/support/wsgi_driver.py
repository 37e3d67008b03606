"""Calls a WSGI application as a server does, under the validator of PEP 3333 on both sides of the middleware."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import WSGIWarning, validator

__all__ = ["Answer", "call", "environ_of", "validated"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore", WSGIWarning)


@dataclass
class Answer:
    """The response as a client of the server sees it."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    begun: int = 0

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for given, value in self.headers if given.lower() == name]

    @property
    def replayed(self) -> bool:
        """Whether the middleware marked the response as a replay."""
        return self.values("idempotency-replayed") == ["true"]


def environ_of(
    method: str = "POST",
    path: str = "/charges",
    *,
    key: str | None = None,
    body: bytes = b"{}",
    user: str = "alice",
    query: str = "",
    **more: Any,
) -> dict[str, Any]:
    """The environment of one request."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_USER": user,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    if key is not None:
        environ["HTTP_IDEMPOTENCY_KEY"] = key
    environ |= more
    return {name: value for name, value in environ.items() if value is not None}


def validated(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """*app* and its caller, checked against PEP 3333."""
    return validator(app)  # type: ignore[arg-type, return-value]


def call(
    app: Callable[..., Iterable[bytes]], environ: dict[str, Any] | None = None, **request: Any
) -> Answer:
    """One request through *app*, to the end of its answer."""
    answer = Answer()
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if exc_info and written:
            raise exc_info[1]
        answer.status, answer.headers = int(status[:3]), headers
        answer.begun += 1
        return written.append

    body = app(environ_of(**request) if environ is None else environ, start_response)
    try:
        written.extend(body)
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()
    answer.body = b"".join(written)
    return answer
