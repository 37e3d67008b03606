"""The middleware, unmodified, under five frameworks and over real sockets of three servers, HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgi_driver import RequestDriver, call, http_scope
from frameworks import FRAMEWORKS, Ledger, build
from patience import PATIENCE
from servers import SERVERS, serve, serve_hypercorn
from wire import Http2, Response, Wire, post, request

from idempotency import Policy
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[*SERVERS, "hypercorn-h2", "granian-h2"])
async def served(
    request: pytest.FixtureRequest, framework: str, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[tuple[Any, Ledger]]:
    """A function that sends one request to the application, and the ledger of its effects."""
    caplog.set_level(logging.CRITICAL)
    app, ledger = build(framework, MemoryStore())
    server = request.param.removesuffix("-h2")
    async with serve(app, server) as port:

        async def send(path: str, *, key: str | None = None, body: bytes = b"{}") -> Response:
            if request.param.endswith("-h2"):
                async with Http2(port) as http2:
                    return await http2.response(http2.start(path, key, body))
            return await post(port, path, key=key, body=body)

        yield send, ledger


async def test_a_repeated_request_gets_the_first_answer_and_runs_the_handler_once(served: Any) -> None:
    send, ledger = served
    first = await send("/charges", key="k")
    again = await send("/charges", key="k")
    assert (first.status, first.replayed, again.status, again.replayed) == (201, False, 201, True)
    assert again.body == first.body
    assert again.values("content-type") == first.values("content-type")
    assert len(first.values("set-cookie")) == 1
    assert again.values("set-cookie") == []
    assert ledger.effects == 1


async def test_a_request_without_a_key_runs_unprotected(served: Any) -> None:
    send, ledger = served
    first, second = await send("/charges"), await send("/charges")
    assert first.status == second.status == 201
    assert ledger.effects == 2
    assert [name for name, _ in first.headers if name.startswith(b"idempotency-")] == []


async def test_refusals_are_problem_documents_and_run_nothing(served: Any) -> None:
    send, ledger = served
    await send("/charges", key="k")
    other = await send("/charges", key="k", body=b'{"other": 1}')
    elsewhere = await send("/echo", key="k")
    too_large = await send("/charges", key="large", body=b"x" * 1_048_577)
    assert (other.status, elsewhere.status, too_large.status) == (422, 422, 413)
    for answer in (other, elsewhere, too_large):
        assert answer.values("content-type") == [b"application/problem+json"]
    assert ledger.effects == 1


async def test_a_large_binary_body_is_handled_and_replayed_unchanged(served: Any) -> None:
    send, _ = served
    body = bytes(range(256)) * 2048
    for replayed in (False, True):
        answer = await send("/echo", key="k", body=body)
        assert (answer.status, answer.replayed) == (200, replayed)
        assert answer.body == body


async def test_an_answer_without_a_body_is_replayed(served: Any) -> None:
    send, _ = served
    for replayed in (False, True):
        answer = await send("/nothing", key="k")
        assert (answer.status, answer.body, answer.replayed) == (204, b"", replayed)


async def test_a_handler_that_raises_frees_the_key(served: Any) -> None:
    send, ledger = served
    assert (await send("/broken", key="k")).status == 500
    again = await send("/broken", key="k")
    assert (again.status, again.replayed, ledger.effects) == (500, False, 2)


async def test_concurrent_duplicates_have_one_effect(served: Any) -> None:
    send, ledger = served
    answers = await asyncio.gather(*[send("/charges", key="k") for _ in range(10)])
    assert {answer.status for answer in answers} <= {201, 409}
    assert ledger.effects == 1


@pytest.mark.parametrize("server", SERVERS)
async def test_a_keyless_stream_reaches_the_client_chunk_by_chunk(server: str, framework: str) -> None:
    app, ledger = build(framework, MemoryStore())
    async with serve(app, server) as port, await Wire.connect(port) as wire:
        await wire.send(request("/stream", None, b""))
        async with asyncio.timeout(30):
            assert (await wire.head())[0] == 200
            chunks = wire.chunks()
            assert await anext(chunks) == b"first"
            ledger.go_on.set()
            assert [chunk async for chunk in chunks] == [b"second"]


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_client_disconnect_ends_a_stream_that_is_being_sent(keyed: bool, framework: str) -> None:
    """Once the answer is being sent, disconnects are passed on; Starlette's and Django's listeners see them."""
    app, ledger = build(framework, MemoryStore(), policy=Policy(max_hold=0.05))
    async with serve(app, "uvicorn-h11") as port:
        async with await Wire.connect(port) as wire:
            await wire.send(request("/stream", "k" if keyed else None, b""))
            await wire.head()
            assert await anext(wire.chunks()) == b"first"
        ledger.go_on.set()
        async with asyncio.timeout(30):
            await ledger.closed.wait()


async def test_a_keyed_stream_that_ends_within_max_hold_is_recorded_and_replayed(framework: str) -> None:
    app, ledger = build(framework, MemoryStore())
    ledger.go_on.set()
    first, again = await call(app, path="/stream", key="k"), await call(app, path="/stream", key="k")
    assert (first.body, first.replayed) == (b"firstsecond", False)
    assert (again.body, again.replayed) == (b"firstsecond", True)


async def test_a_retry_after_an_http2_stream_reset_gets_the_recorded_answer(framework: str) -> None:
    app, ledger = build(framework, MemoryStore(), policy=Policy(max_hold=5))
    async with serve_hypercorn(app) as port, Http2(port) as http2:
        stream = http2.start("/stream", "k", b"{}")
        async with asyncio.timeout(PATIENCE):
            await ledger.begun.wait()
        http2.reset(stream)
        await asyncio.sleep(0.05)  # for the server to read the reset, which no event shows
        ledger.go_on.set()
        async with asyncio.timeout(30):
            await ledger.closed.wait()
        again = await http2.response(http2.start("/stream", "k", b"{}"))
    assert (again.status, again.body, again.replayed) == (200, b"firstsecond", True)


async def test_a_client_that_disconnects_before_its_body_ends_runs_nothing_and_leaves_no_record(
    framework: str,
) -> None:
    app, ledger = build(framework, store := MemoryStore())
    driver = RequestDriver(app, http_scope(headers=[("idempotency-key", '"k"'), ("content-length", "100")]))
    driver.send_body(b"half", more_body=True)
    driver.disconnect()
    assert (await driver.run()).status is None
    assert ledger.effects == 0
    assert not (await store.scan()).records
