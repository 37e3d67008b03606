"""Deadlines: whose timeout ends a call, and what becomes of an answer that nobody waits for."""

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


class TestTimeoutsThatAreNotTheCalls:
    @pytest.mark.anyio
    @on_both_loops
    async def test_what_a_function_raises_is_not_the_deadline(self) -> None:
        own = TimeoutError("its own")

        async def fail() -> None:
            raise own

        with pytest.raises(TimeoutError) as caught:
            await within(30.0, fail)
        assert caught.value is own
        with pytest.raises(DeadlineExceeded):
            await within(0.01, anyio.sleep_forever)

    @pytest.mark.parametrize("answer", [_fails, _answers_slowly], ids=["send", "read"])
    def test_that_of_an_inner_transport_goes_through(self, answer: Any) -> None:
        with (
            httpx.Client(transport=IdempotencyTransport(httpx.MockTransport(answer))) as client,
            pytest.raises(TimeoutError, match="the transport's"),
        ):
            client.post("https://shop.example/charges")

    @pytest.mark.anyio
    @on_both_loops
    @pytest.mark.parametrize("answer", [_fails, _answers_slowly], ids=["send", "read"])
    async def test_that_of_an_inner_asynchronous_transport_goes_through(self, answer: Any) -> None:
        async with httpx.AsyncClient(
            transport=AsyncIdempotencyTransport(httpx.MockTransport(answer))
        ) as client:
            with pytest.raises(TimeoutError, match="the transport's"):
                await client.post("https://shop.example/charges")

    def test_that_of_an_inner_adapter_of_requests_goes_through(self) -> None:
        class Fails(BaseAdapter):
            def send(self, *_: Any, **__: Any) -> requests.Response:
                raise TimeoutError("the adapter's")

            def close(self) -> None: ...

        with requests.Session() as session, pytest.raises(TimeoutError, match="the adapter's"):
            IdempotencyAdapter(Fails()).mount_on(session).post("https://shop.example/charges")

    def test_that_of_a_body_which_is_closed_goes_through(self) -> None:
        class Body:
            def close(self) -> None:
                raise TimeoutError("its own")

        worker = Worker()
        stream = deadlines.BoundedStream(Body(), worker, lambda: 30.0, LookupError)
        with pytest.raises(TimeoutError, match="its own"):
            stream.close()

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_the_total_timeout_of_a_session_of_aiohttp_ends_the_call(self, serve: Any) -> None:
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
    async def test_that_of_a_body_for_aiohttp_goes_through(self, serve: Any) -> None:
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
    def test_an_answer_that_arrives_as_its_caller_is_interrupted_is_closed(
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


class TestNothingIsSentLate:
    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    @pytest.mark.parametrize("name", [name for name in CLIENTS if not name.endswith("-trio")])
    async def test_no_attempt_begins_after_a_pause_that_took_longer_than_the_call(
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
    def test_a_body_whose_end_came_late_is_not_sent_by_requests(self, kind: str, serve: Any) -> None:
        class File(io.BytesIO):
            def read(self, *size: int | None) -> bytes:
                now[0] += 100.0
                return super().read(*size)

        now = [0.0]
        server: Server = serve(lambda *_: None)
        with requests.Session() as session:
            IdempotencyAdapter(monotonic=lambda: now[0]).mount_on(session)
            with pytest.raises(requests.Timeout, match="nothing was sent"):
                session.post(server.url, data=File(b"x") if kind == "file" else _late_end(now))
        assert server.requests == []

    def test_a_body_whose_end_came_late_is_not_sent_by_httpx(self) -> None:
        now = [0.0]
        transport = IdempotencyTransport(httpx.MockTransport(_fails), monotonic=lambda: now[0])
        with (
            httpx.Client(transport=transport) as client,
            pytest.raises(httpx.WriteTimeout, match="nothing was sent"),
        ):
            client.post("https://shop.example/charges", content=_late_end(now))

    @pytest.mark.anyio
    @on_both_loops
    async def test_a_body_whose_end_came_late_is_not_sent_by_httpx_in_a_coroutine(self) -> None:
        now = [0.0]
        transport = AsyncIdempotencyTransport(httpx.MockTransport(_fails), monotonic=lambda: now[0])
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.WriteTimeout, match="nothing was sent"):
                await client.post("https://shop.example/charges", content=_late_end_of_coroutine(now))

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_body_whose_end_came_late_is_not_sent_by_aiohttp(self, serve: Any) -> None:
        now = [0.0]
        server: Server = serve(lambda *_: None)
        once = idempotency_middleware(monotonic=lambda: now[0])
        async with aiohttp.ClientSession(middlewares=[once]) as session:
            with pytest.raises(aiohttp.ServerTimeoutError, match="nothing was sent"):
                await session.post(server.url, data=_late_end_of_coroutine(now))
        assert server.requests == []


def _late_end(now: list[float]) -> Iterator[bytes]:
    yield b"x"
    now[0] += 100.0


async def _late_end_of_coroutine(now: list[float]) -> Any:
    yield b"x"
    now[0] += 100.0
