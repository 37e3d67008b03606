"""A server with one thread that does not end a body at its Content-Length: a read beyond it blocks all requests."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest

from idempotency import Policy
from idempotency.stores.memory import SyncMemoryStore
from idempotency.wsgi import IdempotencyMiddleware, LateClaim, by_environ, claim

App = Callable[[dict[str, Any], Any], Iterable[bytes]]

BODY = b"x" * 100


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(app: App) -> Iterator[int]:
    """The port of a server for *app* with a single thread."""
    server = WSGIServer(("127.0.0.1", 0), _Quiet)
    server.set_app(app)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def response_to(port: int, body: bytes) -> bytes:
    """
    The whole response to one request with a key, whose client keeps its side of the connection open.

    Raises:
        TimeoutError: The server waits for more than the body.
    """
    head = b"POST /charges HTTP/1.0\r\nIdempotency-Key: k\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(head + body)
        parts = []
        while part := client.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def early(app: App) -> App:
    return IdempotencyMiddleware(
        app,
        store=SyncMemoryStore(),
        tenant=by_environ("SERVER_NAME"),
        policy=Policy(max_request_bytes=10),
    )


def late(app: App) -> App:
    return LateClaim(app, store=SyncMemoryStore(), max_request_bytes=10)


@pytest.mark.parametrize("read", [0, 1, 100])
def test_late_refusal_is_complete_whatever_part_of_the_body_the_app_has_read(read: int) -> None:
    """The middleware drains the rest of the body after the refusal, and no byte beyond."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        assert environ["wsgi.input"].read(read) == BODY[:read]
        claim(environ, "alice")
        raise AssertionError

    with serving(late(app)) as port:
        answer = response_to(port, BODY)
    assert answer.startswith(b"HTTP/1.0 413 ")
    assert b"request-too-large" in answer


def test_refusal_before_the_app_runs_is_complete() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise AssertionError

    with serving(early(app)) as port:
        assert response_to(port, BODY).startswith(b"HTTP/1.0 413 ")


@pytest.mark.parametrize("size", [-1, 1_000])
def test_app_that_claims_nothing_reads_a_body_over_the_limit_to_its_end(size: int) -> None:
    """The application reads without a limit, or more than the body has."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(size)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]

    with serving(late(app)) as port:
        assert response_to(port, BODY).endswith(b"\r\n\r\n" + BODY)
