"""Closes the connection of a response that no caller gets: its headers came too late, or the retry rule raised."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import ModuleType

import aiohttp
import httpx
import httpx2
import pytest
import requests
from http_clients import CLIENTS, HTTPClient
from patience import PATIENCE, until, until_sync
from scripted_server import Server

from idempotency.client import Answer, AsyncIdempotencyTransport, IdempotencyTransport, Retry
from idempotency.client.aiohttp import idempotency_middleware
from idempotency.client.requests import IdempotencyAdapter

libraries = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Unfinished:
    """Sends a response that does not end; `closed` is set once the client has closed its connection."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __call__(self, connection: socket.socket, _: bytes) -> None:
        connection.settimeout(PATIENCE)
        connection.sendall(b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        if connection.recv(1) == b"":
            self.closed.set()


def _failing_rule(_: Answer | Exception) -> bool | None:
    raise LookupError("a mistake in the rule")


class TestFailingRetryRule:
    @libraries
    def test_httpx_closes_the_response(self, library: ModuleType, serve: Callable[..., Server]) -> None:
        answer = Unfinished()
        url = serve(answer).url
        transport = IdempotencyTransport(
            library.HTTPTransport(verify=False), retry=Retry(retry_if=_failing_rule)
        )
        with library.Client(transport=transport) as client:
            with pytest.raises(LookupError, match="a mistake"):
                client.post(url)
            until_sync(answer.closed.is_set, "the connection is closed")

    @pytest.mark.anyio
    @libraries
    async def test_async_httpx_closes_the_response(
        self, library: ModuleType, serve: Callable[..., Server]
    ) -> None:
        answer = Unfinished()
        url = serve(answer).url
        transport = AsyncIdempotencyTransport(
            library.AsyncHTTPTransport(verify=False), retry=Retry(retry_if=_failing_rule)
        )
        async with library.AsyncClient(transport=transport) as client:
            with pytest.raises(LookupError, match="a mistake"):
                await client.post(url)
            await until(answer.closed.is_set)

    def test_requests_closes_the_response(self, serve: Callable[..., Server]) -> None:
        answer = Unfinished()
        url = serve(answer).url
        with requests.Session() as session:
            IdempotencyAdapter(retry=Retry(retry_if=_failing_rule)).mount_on(session)
            with pytest.raises(LookupError, match="a mistake") as caught:
                session.post(url, stream=True)
            until_sync(answer.closed.is_set, "the connection is closed")
        assert caught.value.__traceback__ is not None, "kept until here: it refers to the answer"

    @pytest.mark.anyio
    async def test_aiohttp_closes_the_response(self, serve: Callable[..., Server]) -> None:
        answer = Unfinished()
        url = serve(answer).url
        once = idempotency_middleware(retry=Retry(retry_if=_failing_rule))
        async with aiohttp.ClientSession(middlewares=[once]) as session:
            with pytest.raises(LookupError, match="a mistake") as caught:
                await session.post(url)
            await until(answer.closed.is_set)
        assert caught.value.__traceback__ is not None, "kept until here: it refers to the answer"


class TestLateHeaders:
    @pytest.mark.anyio
    @pytest.mark.parametrize("name", [name for name in CLIENTS if not name.endswith("-trio")])
    async def test_response_is_closed_once_its_late_headers_are_complete(
        self, name: str, serve: Callable[..., Server]
    ) -> None:
        client = HTTPClient(name)
        given_up, closed, stay = threading.Event(), threading.Event(), threading.Event()

        def answer(connection: socket.socket, _: bytes) -> None:
            try:
                connection.sendall(b"HTTP/1.1 201 Created\r\nx-slow: ")
                while not given_up.wait(0.05):
                    connection.sendall(b"y")
                connection.sendall(b"\r\ncontent-length: 1000000\r\n\r\n")
                while not stay.wait(0.05):
                    connection.sendall(b"x")
            except OSError:
                closed.set()

        server = serve(answer)
        with pytest.raises(client.timeout_error):
            await client.call("POST", server.url, retry=Retry(timeout=0.3, attempts=1))
        given_up.set()
        assert closed.wait(PATIENCE), "the connection is still open, and a thread still reads from it"
        stay.set()
