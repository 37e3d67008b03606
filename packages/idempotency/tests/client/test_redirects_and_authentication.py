"""The requests of one call: redirects, authentication, retries of the library, and requests that are sent again."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from http_clients import HTTPClient
from scripted_server import Server, redirecting

from idempotency.client import AsyncIdempotencyTransport, IdempotencyTransport, Retry
from idempotency.client.aiohttp import idempotency_middleware
from idempotency.client.requests import IdempotencyAdapter

pytestmark = pytest.mark.anyio
libraries = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _created(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")


class Digest:
    """A server that asks for authentication; each of its responses takes 20 s of the test's clock."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.now = 0.0
        self.timeouts: list[float] = []  # the read timeout of each request
        self.keys: list[str] = []

    def __call__(self, request: Any) -> Any:
        self.now += 20.0
        self.timeouts.append(request.extensions["timeout"]["read"])
        self.keys.append(request.headers["idempotency-key"])
        if "authorization" in request.headers:
            return self.module.Response(201)
        challenge = 'Digest realm="shop", nonce="n", qop="auth"'
        return self.module.Response(401, headers={"www-authenticate": challenge})


class TestAuthentication:
    @libraries
    def test_second_request_of_httpx_digest_authentication_has_the_time_that_is_left(
        self, library: Any
    ) -> None:
        server = Digest(library)
        transport = IdempotencyTransport(library.MockTransport(server), monotonic=lambda: server.now)
        with library.Client(transport=transport, timeout=None) as client:
            client.post("https://shop.example/", auth=library.DigestAuth("user", "password"))
        assert server.timeouts == [30.0, 10.0]
        assert len(set(server.keys)) == 1

    @libraries
    async def test_second_request_of_async_httpx_digest_authentication_has_the_time_that_is_left(
        self, library: Any
    ) -> None:
        server = Digest(library)
        transport = AsyncIdempotencyTransport(library.MockTransport(server), monotonic=lambda: server.now)
        async with library.AsyncClient(transport=transport, timeout=None) as client:
            await client.post("https://shop.example/", auth=library.DigestAuth("user", "password"))
        assert server.timeouts == [30.0, 10.0]

    @libraries
    def test_request_that_is_sent_again_after_its_deadline_has_a_new_deadline(self, library: Any) -> None:
        server = Digest(library)
        transport = IdempotencyTransport(library.MockTransport(server), monotonic=lambda: server.now)
        with library.Client(transport=transport, timeout=None) as client:
            request = client.build_request("POST", "https://shop.example/")
            client.send(request)
            server.now += 100.0
            request.headers["Authorization"] = "Bearer token"
            assert client.send(request).status_code == 201
        assert server.timeouts == [30.0, 30.0]


class TestResentRedirects:
    """The final error of a call carries its last request, which the note of the error says to send again."""

    @libraries
    def test_redirected_httpx_request_that_is_sent_again_has_a_new_deadline(self, library: Any) -> None:
        now, timeouts = [0.0], []

        def answer(request: Any) -> Any:
            timeouts.append(request.extensions["timeout"]["read"])
            if request.url.path == "/":
                return library.Response(307, headers={"location": "/moved"})
            if len(timeouts) == 2:
                now[0] += 31.0
                raise library.ReadError("the connection was lost", request=request)
            return library.Response(201)

        transport = IdempotencyTransport(library.MockTransport(answer), monotonic=lambda: now[0])
        with library.Client(transport=transport, timeout=None, follow_redirects=True) as client:
            with pytest.raises(library.ReadError) as caught:
                client.post("https://shop.example/")
            assert client.send(caught.value.request).status_code == 201
        assert timeouts == [30.0, 30.0, 30.0]

    def test_redirected_requests_request_that_is_sent_again_has_a_new_deadline(
        self, serve: Callable[..., Server]
    ) -> None:
        def answer(connection: socket.socket, head: bytes) -> None:
            if head.startswith(b"POST / "):
                redirecting(307, lambda: "/moved")(connection, head)
            elif len(server.requests) == 2:
                now[0] += 31.0
            else:
                _created(connection, head)

        now = [0.0]
        server = serve(answer)
        with requests.Session() as session:
            IdempotencyAdapter(monotonic=lambda: now[0]).mount_on(session)
            with pytest.raises(requests.ReadTimeout) as caught:
                session.post(server.url)
            assert caught.value.request is not None
            assert session.send(caught.value.request).status_code == 201  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["requests", "aiohttp", "httpx", "httpx-async"])
@pytest.mark.parametrize("body", [b"secret-body", None], ids=["body", "no-body"])
async def test_redirected_get_takes_neither_body_nor_key_to_another_origin(
    name: str, body: bytes | None, serve: Callable[..., Server]
) -> None:
    client = HTTPClient(name)
    other = serve(_created)
    server = serve(redirecting(307, lambda: f"{other.url}/moved"))
    call = client.call("GET", server.url, body=body, follow=True, methods=["GET"])
    if body is None:
        assert (await call).status == 201
        assert b"idempotency-key" not in other.requests[0].lower()
    else:
        with pytest.raises(client.request_error, match="trusted_origins"):
            await call
        assert other.requests == []


async def test_aiohttp_does_not_repeat_a_call_whose_attempts_are_used_up(
    serve: Callable[..., Server],
) -> None:
    async def at_once(_: float) -> None: ...

    server = serve(lambda *_: None)  # closes the connection: aiohttp itself sends a PUT once more
    once = idempotency_middleware(methods=["PUT"], retry=Retry(attempts=2), sleep=at_once)
    async with aiohttp.ClientSession(middlewares=[once]) as session:
        with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
            await session.put(server.url, data=b"x")
        assert len(server.requests) == 2
        assert "gave up after 2 attempts" in caught.value.__notes__[0]
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.put(server.url, data=b"x")
        assert len(server.requests) == 4
