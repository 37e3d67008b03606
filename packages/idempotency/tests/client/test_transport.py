"""The httpx transports over a scripted inner transport: the requests it gets, and what becomes of its responses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from idempotency.client import AsyncIdempotencyTransport, IdempotencyTransport, Retry

pytestmark = pytest.mark.anyio


class Body:
    """A response body that records whether it was read and closed."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.read = self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        self.read = True
        yield self.content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.read = True
        yield self.content

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


class Script:
    """An inner transport that returns its responses in order, and raises those that are errors."""

    def __init__(self, library: Any, *answers: Any) -> None:
        self.library = library
        self.answers = list(answers)
        self.requests: list[Any] = []
        self.calls: list[Any] = []

    def handle_request(self, request: Any) -> Any:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, headers, body = answer
        kind = type("Stream", (Body, self.library.SyncByteStream, self.library.AsyncByteStream), {})
        body.__class__ = kind
        return self.library.Response(status, headers=headers, stream=body)

    async def handle_async_request(self, request: Any) -> Any:
        return self.handle_request(request)

    def __enter__(self) -> None:
        self.calls.append("entered")

    def __exit__(self, *error: object) -> None:
        self.calls.append(error)

    async def __aenter__(self) -> None:
        self.calls.append("entered")

    async def __aexit__(self, *error: object) -> None:
        self.calls.append(error)


class Sender:
    """One library, sync or async."""

    def __init__(self, library: ModuleType, kind: str) -> None:
        self.library: Any = library
        self.kind = kind
        self.pauses: list[float] = []
        self.now = 0.0

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def _async_sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def transport(self, inner: Script, **settings: Any) -> Any:
        if self.kind == "sync":
            return IdempotencyTransport(inner, **({"sleep": self._sleep} | settings))  # type: ignore[arg-type]
        return AsyncIdempotencyTransport(inner, **({"sleep": self._async_sleep} | settings))  # type: ignore[arg-type]

    async def send(self, inner: Script, method: str = "POST", **settings: Any) -> Any:
        timeout = settings.pop("timeout", {})
        transport = self.transport(inner, **settings)
        request = self.library.Request(
            method, "http://shop/charges", content=b"{}", extensions={"timeout": timeout}
        )
        if self.kind == "sync":
            return transport.handle_request(request)
        return await transport.handle_async_request(request)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["sync", "async"])
def sender(request: pytest.FixtureRequest, library: Any) -> Sender:
    return Sender(library, request.param)


def length(body: Body) -> dict[str, str]:
    return {"content-length": str(len(body.content))}


async def test_every_response_is_closed_except_a_streamed_one_that_the_caller_reads(sender: Sender) -> None:
    streamed, whole, last = Body(b"no"), Body(b"no"), Body(b"yes")
    inner = Script(sender.library, (503, {}, streamed), (503, length(whole), whole), (200, {}, last))
    response = await sender.send(inner)
    assert (streamed.closed, whole.closed, last.closed) == (True, True, False)
    assert response.status_code == 200
    body = Body(b"yes")
    await sender.send(Script(sender.library, (200, length(body), body)))
    assert (body.read, body.closed) == (True, True), "a response that was read whole holds no connection"


@pytest.mark.parametrize(("size", "read"), [(1_048_576, True), (1_048_577, False)])
async def test_response_of_more_than_a_mebibyte_is_not_read_in_advance(
    size: int, read: bool, sender: Sender
) -> None:
    body = Body(b"x" * size)
    await sender.send(Script(sender.library, (200, length(body), body)))
    assert body.read is read


async def test_timeouts_of_each_attempt_are_capped_by_the_time_that_is_left(sender: Sender) -> None:
    inner = Script(sender.library, (503, {}, Body(b"")), (200, {}, Body(b"")))
    times = iter([100.0, 100.0, 120.0, 128.0, 129.0])  # the start, then each attempt and its response
    await sender.send(
        inner,
        timeout={"connect": 5.0, "read": 60.0, "write": None},
        retry=Retry(timeout=30.0),
        monotonic=lambda: next(times),
    )
    first, second = [request.extensions["timeout"] for request in inner.requests]
    assert first == {"connect": 5.0, "read": 30.0, "write": 30.0, "pool": 30.0}
    assert second == {"connect": 2.0, "read": 2.0, "write": 2.0, "pool": 2.0}


@pytest.mark.parametrize("name", ["UnsupportedProtocol", "LocalProtocolError"])
async def test_error_of_the_request_itself_is_not_retried(name: str, sender: Sender) -> None:
    error = getattr(sender.library, name)("not like this")
    inner = Script(sender.library, error)
    with pytest.raises(type(error), match="not like this"):
        await sender.send(inner)
    assert (len(inner.requests), sender.pauses) == (1, [])


async def test_retry_after_date_without_a_date_header_is_measured_by_the_local_clock(sender: Sender) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    inner = Script(sender.library, (503, {"retry-after": date}, Body(b"")), (200, {}, Body(b"")))
    await sender.send(inner, chance=lambda: 0.0)
    assert 5 < sender.pauses[0] <= 10


async def test_methods_are_matched_in_any_case(sender: Sender) -> None:
    inner = Script(sender.library, (200, {}, Body(b"")))
    await sender.send(inner, "PUT", methods=["put"])
    assert "idempotency-key" in inner.requests[0].headers


async def test_pauses_are_real_without_an_injected_sleep(sender: Sender) -> None:
    inner = Script(sender.library, (503, {}, Body(b"")), (200, {}, Body(b"")))
    retry = Retry(first_delay=0.04, max_delay=0.04)
    began = time.monotonic()
    answer = await sender.send(inner, retry=retry, sleep=None, chance=lambda: 0.5)
    assert (answer.status_code, sender.pauses) == (200, [])
    assert time.monotonic() - began >= 0.019, "half of the delay, at the resolution of the clocks"


async def test_inner_transport_is_entered_and_gets_the_exception_on_exit(sender: Sender) -> None:
    inner, error = Script(sender.library), LookupError("within")

    async def fail_inside() -> None:
        if sender.kind == "sync":
            with sender.transport(inner):
                raise error
        else:
            async with sender.transport(inner):
                raise error

    with pytest.raises(LookupError, match="within"):
        await fail_inside()
    assert inner.calls[0] == "entered"
    assert inner.calls[1][:2] == (LookupError, error)


def test_retry_accepts_a_single_attempt_and_a_constant_delay() -> None:
    assert Retry(attempts=1).attempts == 1
    assert Retry(first_delay=1.0, max_delay=1.0).max_delay == 1.0
    with pytest.raises(ValueError, match="attempts must be at least 1"):
        Retry(attempts=0)
