"""
Limits on the size and time of the body, at the ASGI level with a scripted client and without real waits, and on the
time of work in a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

import anyio
import pytest
from loop_time import advance, movable
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Scope

from ml_api.http.limits import BODY_COMPLETE, BodyLimit, run_within
from ml_api.http.problems import Problem, render_problem

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return movable("asyncio")


async def size(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def limited(*, max_bytes: int = 10, timeout: float = 5.0) -> Starlette:
    return Starlette(
        routes=[Route("/", size, methods=["POST"])],
        middleware=[Middleware(BodyLimit, max_bytes=max_bytes, timeout=timeout)],
        exception_handlers={Problem: render_problem},
    )


class Client:
    """Acts as the server: passes scripted body parts to the application and collects its answer."""

    def __init__(
        self, parts: Iterable[bytes], *, headers: Iterable[tuple[bytes, bytes]] = (), silent: bool = False
    ):
        self.parts, self.silent, self.asked = list(parts), silent, 0
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": list(headers),
        }
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        self.asked += 1
        if self.parts:
            part = self.parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self.parts) or self.silent}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def call(self, app: ASGIApp) -> int:
        await app(self.scope, self.receive, self.send)
        return int(self.sent[0]["status"])


async def test_a_body_at_the_limit_passes_in_several_parts() -> None:
    client = Client([b"12345", b"", b"67890"])
    assert await client.call(limited()) == 200
    assert client.sent[1]["body"] == b"10"


async def test_a_streamed_body_over_the_limit_is_413_and_drained() -> None:
    client = Client([b"12345"] * 5)
    assert await client.call(limited()) == 413
    assert (b"connection", b"close") in client.sent[0]["headers"]
    assert client.parts == []  # drained, so that the client reads the answer and no reset
    assert client.asked == 5


async def test_a_client_that_stops_sending_an_oversized_body_gets_413(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ml_api.http.limits._DRAIN_SECONDS", 0.01)
    assert await Client([b"x" * 11], silent=True).call(limited()) == 413


async def test_draining_an_oversized_body_is_limited() -> None:
    client = Client([b"x" * 10] * 1000)
    assert await client.call(limited()) == 413
    assert len(client.parts) > 900


async def test_a_content_length_over_the_limit_is_413_and_drained() -> None:
    client = Client([b"x" * 11], headers=[(b"content-length", b"11")])
    assert await client.call(limited()) == 413
    assert client.parts == []  # drained, so that the client reads the answer


@pytest.mark.parametrize(
    "header", [(b"x-count", b"999"), (b"content-length", b"+999"), (b"content-length", b"")]
)
async def test_other_headers_and_invalid_content_lengths_are_ignored(header: tuple[bytes, bytes]) -> None:
    assert await Client([b"1"], headers=[header]).call(limited()) == 200


async def test_a_content_length_at_the_limit_passes() -> None:
    client = Client([b"x" * 10], headers=[(b"content-length", b"10")])
    assert await client.call(limited()) == 200


async def test_expect_100_continue_over_the_limit_is_413_without_reading_the_body() -> None:
    client = Client([], headers=[(b"content-length", b"999"), (b"expect", b"100-continue")])
    assert await client.call(limited()) == 413
    assert client.asked == 0


async def test_a_body_that_stops_arriving_is_408() -> None:
    client = Client([b"123"], silent=True)
    assert await client.call(limited(timeout=0.01)) == 408


async def test_a_slow_body_is_408_after_the_body_timeout() -> None:
    class SlowClient(Client):
        async def receive(self) -> Message:
            await advance(2)
            return await super().receive()

    client = SlowClient([b"1"] * 8)
    assert await client.call(limited(timeout=5)) == 408
    assert len(client.parts) > 3


async def test_waiting_for_the_disconnect_is_not_limited_by_the_body_timeout() -> None:
    async def after_the_body(scope: Scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        while (await receive()).get("more_body"):
            pass
        with anyio.move_on_after(0.05):
            await receive()
        await PlainTextResponse("fine")(scope, receive, send)

    class Terse(Client):
        async def receive(self) -> Message:
            message = await super().receive()
            del message["more_body"]  # ASGI: as if it were False
            return message

    for client in (Client([b"1"]), Terse([b"1"])):
        assert await client.call(BodyLimit(after_the_body, max_bytes=10, timeout=0.01)) == 200


async def test_a_complete_body_has_no_timeout() -> None:
    class Slow(Client):
        async def receive(self) -> Message:
            await advance(3)
            return await super().receive()

    late, here = Slow([b"1"]), Slow([b"1"])
    here.scope[BODY_COMPLETE] = True
    assert await late.call(limited(timeout=1)) == 408
    assert await here.call(limited(timeout=1)) == 200


async def test_a_complete_body_over_the_limit_is_413() -> None:
    client = Client([b"x" * 11])
    client.scope[BODY_COMPLETE] = True
    assert await client.call(limited()) == 413


async def test_work_over_its_time_limit_is_504() -> None:
    never = threading.Event()
    try:
        with pytest.raises(Problem) as caught:
            await run_within(0.01, never.wait)
    finally:
        never.set()
    assert (caught.value.status, caught.value.headers) == (504, {"Retry-After": "1"})


async def test_work_within_its_time_limit_returns_its_result_from_a_thread() -> None:
    assert await run_within(60, threading.current_thread) is not threading.main_thread()


async def test_a_timeout_error_of_the_work_is_raised_unchanged() -> None:
    def own_timeout() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await run_within(5, own_timeout)
