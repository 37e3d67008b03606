"""
Limits on the body and on the handler's time, at the ASGI level: a scripted client, no server, no real
waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import anyio
import httpx
import pytest
from loop_time import advance, movable
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Scope

from ml_api.http.limits import BODY_COMPLETE, BodyLimit, HandlerDeadline
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
    """Plays the server's part: hands out scripted body parts, collects the answer."""

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


async def test_a_body_at_the_limit_passes_whatever_its_parts() -> None:
    client = Client([b"12345", b"", b"67890"])
    assert await client.call(limited()) == 200
    assert client.sent[1]["body"] == b"10"


async def test_bytes_are_counted_as_they_arrive_and_the_rest_is_not_kept() -> None:
    client = Client([b"12345"] * 5)
    assert await client.call(limited()) == 413
    assert (b"connection", b"close") in client.sent[0]["headers"]
    assert client.parts == []  # drained, so that the answer is read and not a reset
    assert client.asked == 5


async def test_a_client_that_stops_in_the_middle_of_too_much_is_answered_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ml_api.http.limits._DRAIN_SECONDS", 0.01)
    assert await Client([b"x" * 11], silent=True).call(limited()) == 413


async def test_draining_has_an_end() -> None:
    client = Client([b"x" * 10] * 1000)
    assert await client.call(limited()) == 413
    assert len(client.parts) > 900


async def test_a_declared_length_over_the_limit_is_refused_before_the_route_runs() -> None:
    client = Client([b"x" * 11], headers=[(b"content-length", b"11")])
    assert await client.call(limited()) == 413
    assert client.parts == []  # drained, so that the answer is read


@pytest.mark.parametrize(
    "header", [(b"x-count", b"999"), (b"content-length", b"+999"), (b"content-length", b"")]
)
async def test_only_a_length_is_a_declared_length(header: tuple[bytes, bytes]) -> None:
    assert await Client([b"1"], headers=[header]).call(limited()) == 200


async def test_a_declared_length_at_the_limit_passes() -> None:
    client = Client([b"x" * 10], headers=[(b"content-length", b"10")])
    assert await client.call(limited()) == 200


async def test_a_client_that_waits_for_100_continue_is_not_told_to_go_on() -> None:
    client = Client([], headers=[(b"content-length", b"999"), (b"expect", b"100-continue")])
    assert await client.call(limited()) == 413
    assert client.asked == 0


async def test_a_body_that_stops_arriving_is_408() -> None:
    client = Client([b"123"], silent=True)
    assert await client.call(limited(timeout=0.01)) == 408


async def test_a_body_that_trickles_is_408_at_the_end_of_its_time() -> None:
    class Trickle(Client):
        async def receive(self) -> Message:
            await advance(2)
            return await super().receive()

    client = Trickle([b"1"] * 8)
    assert await client.call(limited(timeout=5)) == 408
    assert len(client.parts) > 3


async def test_waiting_for_the_disconnect_is_no_slow_body() -> None:
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


async def test_no_clock_is_set_for_a_body_that_is_here() -> None:
    class Slow(Client):
        async def receive(self) -> Message:
            await advance(3)
            return await super().receive()

    late, here = Slow([b"1"]), Slow([b"1"])
    here.scope[BODY_COMPLETE] = True
    assert await late.call(limited(timeout=1)) == 408
    assert await here.call(limited(timeout=1)) == 200


async def test_a_body_that_is_here_may_still_be_too_large() -> None:
    client = Client([b"x" * 11])
    client.scope[BODY_COMPLETE] = True
    assert await client.call(limited()) == 413


async def nap(_: Request) -> PlainTextResponse:
    await asyncio.Event().wait()
    return PlainTextResponse("late")


async def slow_stream(_: Request) -> StreamingResponse:
    async def parts():  # type: ignore[no-untyped-def]
        yield b"a"
        await advance(5)
        yield b"b"

    return StreamingResponse(parts())


async def own_timeout(_: Request) -> PlainTextResponse:
    raise TimeoutError("the handler's own")


def on_the_clock(endpoint, seconds: float) -> httpx.AsyncClient:  # type: ignore[no-untyped-def]
    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    transport = httpx.ASGITransport(HandlerDeadline(app, seconds=seconds))
    return httpx.AsyncClient(transport=transport, base_url="http://service")


async def test_a_handler_over_its_time_is_cut_off_with_504() -> None:
    answer = await on_the_clock(nap, 0.01).post("/")
    assert answer.status_code == 504
    assert answer.headers["retry-after"] == "1"


async def test_a_handler_whose_body_was_here_is_cut_off_too() -> None:
    client = Client([b"1"])
    client.scope[BODY_COMPLETE] = True
    assert (
        await client.call(
            HandlerDeadline(Starlette(routes=[Route("/", nap, methods=["POST"])]), seconds=0.01)
        )
        == 504
    )


async def test_an_answer_that_has_begun_may_take_its_time() -> None:
    assert (await on_the_clock(slow_stream, 2).post("/")).text == "ab"


async def test_an_answer_that_has_begun_may_take_its_time_though_nobody_asks_for_more_of_the_request() -> (
    None
):
    async def slow(scope: Scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await advance(5)
        await send({"type": "http.response.body", "body": b"whole"})

    client = Client([b"1"])
    assert await client.call(HandlerDeadline(slow, seconds=2)) == 200
    assert client.sent[1]["body"] == b"whole"


async def test_a_timeout_of_the_handler_is_not_taken_for_the_deadline() -> None:
    with pytest.raises(TimeoutError, match="own"):
        await on_the_clock(own_timeout, 5).post("/")


async def test_the_time_of_a_slow_client_is_not_the_handlers() -> None:
    class Slow(Client):
        async def receive(self) -> Message:
            await advance(3)
            return await super().receive()

    app = HandlerDeadline(limited(max_bytes=100, timeout=60), seconds=2)
    client = Slow([b"1", b"2", b"3"])
    assert await client.call(app) == 200
