"""Limits below ASGI, over real sockets: size and time of headers, and silent connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from loop_time import advance, movable
from patience import PATIENCE, until
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ml_api.http.limits import BODY_COMPLETE
from ml_api.server.protocol import LimitedProtocol
from ml_api.settings import Settings, load_settings

pytestmark = [pytest.mark.real_time("the server's timers are real"), pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> object:
    return movable("asyncio")


class LimitedConfig(uvicorn.Config):
    settings: Settings


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await PlainTextResponse("here" if BODY_COMPLETE in scope else "hello")(scope, receive, send)


@contextlib.asynccontextmanager
async def serving(
    *, max_header_bytes: int = 2048, header_timeout: float = 30.0, app: ASGIApp = hello
) -> AsyncIterator[int]:
    config = LimitedConfig(app, port=0, http=LimitedProtocol, lifespan="off", log_config=None)
    config.settings = load_settings(
        api_key="the-api-key-of-the-tests",
        max_header_bytes=max_header_bytes,
        header_timeout=header_timeout,
        keep_alive_timeout=30,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    with contextlib.suppress(AttributeError):
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def talk(port: int, *parts: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_two_requests_on_one_connection_are_served() -> None:
    async with serving() as port:
        request = b"GET / HTTP/1.1\r\nhost: x\r\n"
        answer = await talk(port, request + b"\r\n", request + b"connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_a_whole_answer_is_sent_before_the_application_returns() -> None:
    received = []

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("hello")(scope, receive, send)
        received.append(client.recv(10_000))  # blocks the loop, which so cannot send anything later

    async with serving(app=answers) as port:
        client = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port), PATIENCE)
        with client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: received)
    assert received[0].endswith(b"hello")


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip\r\ntransfer-encoding: chunked"])
async def test_a_transfer_coding_that_is_not_undone_is_501(coding: bytes) -> None:
    async with serving() as port:
        head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: "
        answer = await talk(port, head + coding + b"\r\n\r\n1\r\nx\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 501")


async def test_the_name_of_the_chunked_coding_may_be_in_capitals() -> None:
    async with serving() as port:
        head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: Chunked\r\n\r\n"
        assert (await talk(port, head + b"1\r\nx\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_headers_over_the_limit_are_431() -> None:
    async with serving() as port:
        filler = b"".join(b"x-%d: %b\r\n" % (number, b"y" * 100) for number in range(30))
        answer = await talk(port, b"GET / HTTP/1.1\r\nhost: x\r\n" + filler + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"application/problem+json" in answer
    assert b"connection: close" in answer.lower()


async def test_header_separators_count_towards_the_limit() -> None:
    async with serving() as port:
        answer = await talk(port, b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 400 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431")


async def test_an_endless_header_is_431() -> None:
    async with serving() as port:
        answer = await talk(port, b"GET / HTTP/1.1\r\nx: ", *[b"y" * 1000] * 5)
    assert answer.startswith(b"HTTP/1.1 431")


async def test_a_long_url_counts_towards_the_header_limit() -> None:
    async with serving() as port:
        answer = await talk(port, b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431")


async def test_slow_headers_are_408() -> None:
    async with serving(header_timeout=0.1) as port:
        answer = await talk(port, b"GET / HTTP/1.1\r\nhost:")
    assert answer.startswith(b"HTTP/1.1 408")


async def test_slow_headers_of_a_later_request_are_408() -> None:
    async with serving(header_timeout=2.0) as port:
        answer = await talk(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost:")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


async def test_a_silent_connection_is_closed_without_an_answer() -> None:
    async with serving(header_timeout=0.1) as port:
        assert await talk(port) == b""


async def test_the_header_limit_does_not_apply_to_the_body() -> None:
    async with serving() as port:
        head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5000\r\n\r\n"
        assert (await talk(port, head, b"b" * 5000)).startswith(b"HTTP/1.1 200")


async def test_the_header_timeout_does_not_apply_to_the_body() -> None:
    begun = asyncio.Event()

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        body = await Request(scope, receive).body()
        await PlainTextResponse(body)(scope, receive, send)

    async with serving(header_timeout=2.0, app=echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbo")
        async with asyncio.timeout(PATIENCE):
            await begun.wait()
            await advance(2.5)
            writer.write(b"dy")
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\nbody")
        writer.close()


async def test_head_and_body_of_an_answer_arrive_in_one_read() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(30):
            first = await reader.read(65_536)
        writer.close()
    assert first.startswith(b"HTTP/1.1 200")
    assert first.endswith(b"here")


async def test_the_scope_says_whether_the_body_came_with_the_headers() -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\n"
    async with serving() as port:
        assert (await talk(port, head + b"body")).endswith(b"here")
        assert (await talk(port, head + b"bo")).endswith(b"hello")


async def test_a_closed_connection_is_freed_without_the_garbage_collector() -> None:
    def connections() -> list[object]:
        return [one for one in gc.get_objects() if type(one) is LimitedProtocol]

    async with serving() as port:
        gc.collect()
        gc.disable()
        try:
            assert (await talk(port, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).endswith(
                b"here"
            )
            await until(lambda: not connections())
        finally:
            gc.enable()
