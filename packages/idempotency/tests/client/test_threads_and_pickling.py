"""Threads after a call, pickled sessions, and calls inside a call."""

from __future__ import annotations

import gc
import io
import pickle
import socket
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from patience import until_sync
from scripted_server import Server, redirecting

from idempotency.client import IdempotencyTransport, deadlines
from idempotency.client.aiohttp import idempotency_middleware
from idempotency.client.requests import IdempotencyAdapter


def _created(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")


def _by_httpx(library: ModuleType) -> Callable[[str], tuple[Any, Any]]:
    def send(url: str) -> tuple[Any, Any]:
        client = library.Client(transport=IdempotencyTransport(library.HTTPTransport(verify=False)))
        return client, client.send(client.build_request("POST", url), stream=True)

    return send


def _by_requests(url: str) -> tuple[Any, Any]:
    session = IdempotencyAdapter().mount_on(requests.Session())
    return session, session.post(url, stream=True)


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "idempotency-client"}


@pytest.mark.parametrize(
    "send", [_by_httpx(httpx), _by_httpx(httpx2), _by_requests], ids=["httpx", "httpx2", "requests"]
)
def test_abandoned_response_keeps_no_thread_alive(
    send: Callable[[str], tuple[Any, Any]], serve: Callable[..., Server]
) -> None:
    head = b"HTTP/1.1 201 Created\r\nconnection: close\r\n\r\n"
    server = serve(lambda connection, _: connection.sendall(head + b"x" * 100))
    before = _threads()
    client, answer = send(server.url)
    assert answer.status_code == 201
    del answer
    gc.collect()
    until_sync(lambda: not _threads() - before, "the client's thread ends")
    client.close()


def test_response_that_arrives_at_the_deadline_is_returned_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class QueueThatTimesOutLate(SimpleQueue):  # type: ignore[type-arg]
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            item = super().get(block)
            if timeout is not None:
                self.put(item)
                raise Empty
            return item

    monkeypatch.setattr(deadlines, "SimpleQueue", QueueThatTimesOutLate)
    worker = deadlines.Worker()
    body = io.BytesIO(b"answer")
    assert worker.call(1.0, lambda: body) is body
    worker.end()
    assert not body.closed
    assert not worker.was_abandoned


def test_requests_session_with_the_adapter_can_be_pickled() -> None:
    session = IdempotencyAdapter().mount_on(requests.Session())
    copy = pickle.loads(pickle.dumps(session))
    assert isinstance(copy.get_adapter("https://a.example"), IdempotencyAdapter)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nested_call_of_an_aiohttp_middleware_does_not_hide_a_redirect_to_another_origin(
    serve: Callable[..., Server],
) -> None:
    other, tokens = serve(_created), serve(_created)
    server = serve(redirecting(307, lambda: f"{other.url}/moved"))

    async def with_token(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if str(request.url.origin()) != tokens.url:
            async with session.post(tokens.url) as answer:
                request.headers["Authorization"] = await answer.text()
        return await handler(request)

    middlewares = [idempotency_middleware(), with_token]
    async with aiohttp.ClientSession(middlewares=middlewares) as session:
        with pytest.raises(aiohttp.ClientError, match="trusted_origins"):
            await session.post(server.url, data=b"secret-body")
    assert (len(tokens.requests), len(server.requests), other.requests) == (1, 1, [])
