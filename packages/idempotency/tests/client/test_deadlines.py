"""Deadlines: which timeout ends a call, and responses that arrive after their caller has gone."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
import requests
from http_clients import CLIENTS, HTTPClient
from requests.adapters import BaseAdapter
from scripted_server import Server

from idempotency.client import AsyncIdempotencyTransport, IdempotencyTransport, deadlines
from idempotency.client.aiohttp import idempotency_middleware
from idempotency.client.deadlines import DeadlineExceeded, Worker, within
from idempotency.client.requests import IdempotencyAdapter

on_both_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


class SlowBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body whose transport has a timeout of its own."""

    def __iter__(self) -> Any:
        raise TimeoutError("the transport's")
        yield b""

    async def __aiter__(self) -> Any:
        raise TimeoutError("the transport's")
        yield b""


def _fails(_: httpx.Request) -> httpx.Response:
    raise TimeoutError("the transport's")


def _answers_slowly(_: httpx.Request) -> httpx.Response:
    return httpx.Response(201, stream=SlowBody())


class TestTimeoutErrorsOfOtherCode:
    @pytest.mark.anyio
    @on_both_loops
    async def test_timeout_error_raised_inside_is_not_taken_for_the_deadline(self) -> None:
        own = TimeoutError("its own")

        async def fail() -> None:
            raise own

        with pytest.raises(TimeoutError) as caught:
            await within(30.0, fail)
        assert caught.value is own
        with pytest.raises(DeadlineExceeded):
            await within(0.01, anyio.sleep_forever)

    @pytest.mark.parametrize("answer", [_fails, _answers_slowly], ids=["send", "read"])
    def test_timeout_error_of_an_inner_transport_propagates(self, answer: Any) -> None:
        with (
            httpx.Client(transport=IdempotencyTransport(httpx.MockTransport(answer))) as client,
            pytest.raises(TimeoutError, match="the transport's"),
        ):
            client.post("https://shop.example/charges")

    @pytest.mark.anyio
    @on_both_loops
    @pytest.mark.parametrize("answer", [_fails, _answers_slowly], ids=["send", "read"])
    async def test_timeout_error_of_an_inner_async_transport_propagates(self, answer: Any) -> None:
        async with httpx.AsyncClient(
            transport=AsyncIdempotencyTransport(httpx.MockTransport(answer))
        ) as client:
            with pytest.raises(TimeoutError, match="the transport's"):
                await client.post("https://shop.example/charges")

    def test_timeout_error_of_an_inner_requests_adapter_propagates(self) -> None:
        class Fails(BaseAdapter):
            def send(self, *_: Any, **__: Any) -> requests.Response:
                raise TimeoutError("the adapter's")

            def close(self) -> None: ...

        with requests.Session() as session, pytest.raises(TimeoutError, match="the adapter's"):
            IdempotencyAdapter(Fails()).mount_on(session).post("https://shop.example/charges")

    def test_timeout_error_of_closing_a_body_propagates(self) -> None:
        class Body:
            def close(self) -> None:
                raise TimeoutError("its own")

        worker = Worker()
        stream = deadlines.BoundedStream(Body(), worker, lambda: 30.0, LookupError)
        with pytest.raises(TimeoutError, match="its own"):
            stream.close()

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_total_timeout_of_an_aiohttp_session_ends_the_call_without_a_retry(
        self, serve: Any
    ) -> None:
        async def at_once(_: float) -> None: ...

        done = threading.Event()
        server: Server = serve(lambda *_: done.wait(20))
        total = aiohttp.ClientTimeout(total=0.2)
        async with aiohttp.ClientSession(
            middlewares=[idempotency_middleware(sleep=at_once)], timeout=total
        ) as session:
            with pytest.raises(TimeoutError) as caught:
                await session.post(server.url)
        done.set()
        assert not isinstance(caught.value, aiohttp.ClientError)
        assert len(server.requests) == 1

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_timeout_error_of_an_aiohttp_request_body_propagates(self, serve: Any) -> None:
        async def body() -> Any:
            yield b"x"
            raise TimeoutError("the body's")

        server: Server = serve(lambda *_: None)
        async with aiohttp.ClientSession(middlewares=[idempotency_middleware()]) as session:
            with pytest.raises(TimeoutError, match="the body's"):
                await session.post(server.url, data=body())
        assert server.requests == []


class TestInterrupts:
    @pytest.mark.parametrize("with_close", [False, True])
    def test_response_that_arrives_while_its_caller_is_interrupted_is_closed(
        self, monkeypatch: pytest.MonkeyPatch, with_close: bool
    ) -> None:
        class Interrupted(SimpleQueue):  # type: ignore[type-arg]
            def get(self, block: bool = True, timeout: float | None = None) -> Any:
                item = super().get(block)
                if timeout is not None:
                    self.put(item)
                    raise KeyboardInterrupt
                return item

        monkeypatch.setattr(deadlines, "SimpleQueue", Interrupted)
        worker = Worker()
        answer, connection = io.BytesIO(b"answer"), io.BytesIO()
        with pytest.raises(KeyboardInterrupt):
            worker.call(30.0, lambda: answer, close=connection.close if with_close else None)
        worker.end()
        assert (answer.closed, connection.closed) == (not with_close, with_close)
        with pytest.raises(DeadlineExceeded):
            worker.call(30.0, lambda: answer)


class TestNothingIsSentAfterTheDeadline:
    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    @pytest.mark.parametrize("name", [name for name in CLIENTS if not name.endswith("-trio")])
    async def test_no_attempt_begins_after_a_pause_that_exceeded_the_deadline(
        self, name: str, serve: Any
    ) -> None:
        def busy(connection: socket.socket, _: bytes) -> None:
            connection.sendall(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        def oversleep() -> None:
            now[0] += 100.0

        now = [0.0]
        client = HTTPClient(name)
        client.while_pausing = oversleep
        server: Server = serve(busy)
        with pytest.raises(client.timeout_error, match="no complete answer within 30 s"):
            await client.call("POST", server.url, monotonic=lambda: now[0])
        assert (len(server.requests), len(client.pauses)) == (1, 1)

    @pytest.mark.parametrize("kind", ["file", "stream"])
    def test_requests_sends_no_body_that_was_complete_after_the_deadline(self, kind: str, serve: Any) -> None:
        class File(io.BytesIO):
            def read(self, *size: int | None) -> bytes:
                now[0] += 100.0
                return super().read(*size)

        now = [0.0]
        server: Server = serve(lambda *_: None)
        with requests.Session() as session:
            IdempotencyAdapter(monotonic=lambda: now[0]).mount_on(session)
            with pytest.raises(requests.Timeout, match="nothing was sent"):
                session.post(server.url, data=File(b"x") if kind == "file" else _body_that_ends_late(now))
        assert server.requests == []

    def test_httpx_sends_no_body_that_was_complete_after_the_deadline(self) -> None:
        now = [0.0]
        transport = IdempotencyTransport(httpx.MockTransport(_fails), monotonic=lambda: now[0])
        with (
            httpx.Client(transport=transport) as client,
            pytest.raises(httpx.WriteTimeout, match="nothing was sent"),
        ):
            client.post("https://shop.example/charges", content=_body_that_ends_late(now))

    @pytest.mark.anyio
    @on_both_loops
    async def test_async_httpx_sends_no_body_that_was_complete_after_the_deadline(self) -> None:
        now = [0.0]
        transport = AsyncIdempotencyTransport(httpx.MockTransport(_fails), monotonic=lambda: now[0])
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.WriteTimeout, match="nothing was sent"):
                await client.post("https://shop.example/charges", content=_async_body_that_ends_late(now))

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_aiohttp_sends_no_body_that_was_complete_after_the_deadline(self, serve: Any) -> None:
        now = [0.0]
        server: Server = serve(lambda *_: None)
        once = idempotency_middleware(monotonic=lambda: now[0])
        async with aiohttp.ClientSession(middlewares=[once]) as session:
            with pytest.raises(aiohttp.ServerTimeoutError, match="nothing was sent"):
                await session.post(server.url, data=_async_body_that_ends_late(now))
        assert server.requests == []


def _body_that_ends_late(now: list[float]) -> Iterator[bytes]:
    yield b"x"
    now[0] += 100.0


async def _async_body_that_ends_late(now: list[float]) -> Any:
    yield b"x"
    now[0] += 100.0
