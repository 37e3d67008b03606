"""Traps 8 to 17: blocked and cancelled runs, disconnected clients, streams, and large bodies."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import pytest
from asgi_driver import RequestDriver, call, http_scope, key_header
from effects import Charges, PatchedStore, guard, read_body, respond
from patience import PATIENCE, until, until_forgotten, until_lapsed
from servers import SERVERS, serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from stores import open_store
from wire import Wire, post, request

from idempotency import IdempotencyMiddleware, Policy, StorageKey, one_tenant
from idempotency.events import ClaimLost, Event, Settled
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

LEASE = 0.3
KEPT_LEASE = 1.5  # s: for a run that must keep its key, also if the machine stalls for a second


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(8)
async def test_a_handler_that_blocks_its_loop_past_its_lease_may_run_twice_and_fires_claim_lost(
    shared_kind: str, locate: Any, key: str
) -> None:
    """As documented: a blocked loop cannot renew the lease, but both callers get the same answer."""
    blocked, go_on, events = threading.Event(), threading.Event(), list[Event]()

    async def blocking(number: int) -> None:
        blocked.set()
        go_on.wait(PATIENCE)  # what an async handler must not do: it blocks its loop

    charges = Charges(blocking)

    async def elsewhere() -> Any:
        async with open_store(shared_kind, locate(shared_kind)) as store:
            app = IdempotencyMiddleware(
                charges, store=store, tenant=one_tenant(), policy=Policy(lease=LEASE), hooks=[events.append]
            )
            return await call(app, key=key)

    async with open_store(shared_kind, locate(shared_kind)) as store:
        other_loop = asyncio.get_running_loop().run_in_executor(None, asyncio.run, elsewhere())
        await until(blocked.is_set)
        charges.work = None
        await until_lapsed(store, StorageKey(key))
        second = await call(guard(charges, store, lease=LEASE), key=key)
        go_on.set()
        first = await other_loop
    assert charges.runs == 2
    assert first.body == second.body
    assert any(isinstance(event, ClaimLost) for event in events)


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(8)
async def test_the_lease_of_a_sync_handler_in_the_thread_pool_is_renewed(any_store: Store, key: str) -> None:
    runs, go_on = [], threading.Event()

    def charge(request: Request) -> PlainTextResponse:
        runs.append(1)
        go_on.wait(PATIENCE)  # in a thread of the pool, which does not block the loop
        return PlainTextResponse("charged", 201)

    inner = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
    watched = PatchedStore(any_store)
    app, elsewhere = (guard(inner, store, lease=KEPT_LEASE) for store in (watched, any_store))
    first = asyncio.create_task(call(app, key=key))
    await until(lambda: watched.calls.get("renew", 0) >= 4)  # one each third of the lease
    assert (await call(elsewhere, key=key)).status == 409
    go_on.set()
    assert (await first).status == 201
    assert len(runs) == 1


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(9)
async def test_a_cancelled_run_holds_its_key_until_its_lease_lapses(any_store: Store, key: str) -> None:
    async def work(number: int) -> None:
        if number == 1:
            await asyncio.Event().wait()

    charges = Charges(work)
    app = guard(charges, any_store, lease=KEPT_LEASE)
    first = asyncio.create_task(call(app, key=key))
    await until(lambda: charges.runs != 0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await call(app, key=key)).status == 409, "its effect may have happened: no second run yet"
    await until_lapsed(any_store, StorageKey(key))
    assert (await call(app, key=key)).body == b'{"charge": 2}'


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(9)
async def test_at_most_once_never_repeats_a_cancelled_run(any_store: Store, key: str) -> None:
    async def work(number: int) -> None:
        await asyncio.Event().wait()

    charges = Charges(work)
    app = guard(charges, any_store, policy=Policy.at_most_once(lease=LEASE))
    first = asyncio.create_task(call(app, key=key))
    await until(lambda: charges.runs != 0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await until_lapsed(any_store, StorageKey(key))
    answer = await call(app, key=key)
    assert answer.status == 409
    assert b"outcome-unknown" in answer.body
    assert charges.runs == 1


@pytest.mark.trap(9)
async def test_a_request_cancelled_before_its_run_frees_its_key_at_once(any_store: Store, key: str) -> None:
    granted = asyncio.Event()

    async def acquire(store: Store, *args: Any, **kwargs: Any) -> Any:
        await store.acquire(*args, **kwargs)
        granted.set()
        await asyncio.Event().wait()  # the reply is on its way

    charges = Charges()
    waiting = asyncio.create_task(call(guard(charges, PatchedStore(any_store, acquire=acquire)), key=key))
    await granted.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until_forgotten(any_store, StorageKey(key))
    assert (await call(guard(charges, any_store), key=key)).status == 201


@pytest.mark.trap(10)
@pytest.mark.parametrize("server", SERVERS)
async def test_a_retry_of_a_client_that_closed_its_socket_gets_the_recorded_answer(
    server: str, any_store: Store, key: str
) -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()
        done.set()

    charges = Charges(work)
    async with serve(guard(charges, any_store, wait=PATIENCE), server) as port:
        async with await Wire.connect(port) as wire:
            await wire.send(request("/charges", key, b"{}"))
            await until(lambda: charges.runs != 0)
            wire.reset()
        await asyncio.sleep(0.05)  # until the server sees the reset, which no event shows
        go_on.set()
        await done.wait()
        again = await post(port, key=key)
    assert (again.status, again.replayed, again.body) == (201, True, b'{"charge": 1}')
    assert charges.runs == 1


async def _numbers() -> Any:
    for number in range(5):
        yield b"%d," % number
        await anyio.sleep(0)


async def _stream(request: Request) -> StreamingResponse:
    body = await request.body()
    assert not await request.is_disconnected()
    return StreamingResponse(_numbers(), headers={"x-body": str(len(body))})


@pytest.mark.trap(11)
# Before 2.4 Starlette listens for a disconnect itself.
@pytest.mark.parametrize("spec_version", ["2.0", "2.4"])
@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_streaming_response_is_complete_and_sees_no_false_disconnect(
    method: str, keyed: bool, spec_version: str, key: str
) -> None:
    inner = Starlette(routes=[Route("/charges", _stream, methods=["GET", "POST"])])
    asgi = {"version": "3.0", "spec_version": spec_version}
    bare = await call(inner, method, asgi=asgi)
    app = guard(inner, MemoryStore())
    for _ in range(2):
        answer = await call(app, method, key=key if keyed else None, asgi=asgi)
        assert (answer.status, answer.body, answer.complete) == (200, bare.body, True)
        assert answer.header("x-body") == bare.header("x-body")


@pytest.mark.trap(12)
@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("server", SERVERS)
async def test_a_disconnect_from_an_event_stream_ends_its_generator(
    server: str, keyed: bool, key: str
) -> None:
    ended = asyncio.Event()

    async def events() -> Any:
        try:
            while True:
                yield b"data: tick\n\n"
                await asyncio.sleep(0.01)  # between two events of an endless stream
        finally:
            ended.set()

    async def endpoint(request: Request) -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    inner = Starlette(routes=[Route("/charges", endpoint, methods=["POST"])])
    async with serve(guard(inner, MemoryStore()), server) as port:
        async with await Wire.connect(port) as wire:
            await wire.send(request("/charges", key if keyed else None, b"{}"))
            assert (await wire.head())[0] == 200
            assert b"tick" in await anext(wire.chunks())
        async with asyncio.timeout(30):
            await ended.wait()


class _TwoChunks:
    """An application that sends a chunk, and the next one when the test lets it."""

    def __init__(self) -> None:
        self.go_on = anyio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-one", b"1")]})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"second"})


@pytest.mark.trap(13)
async def test_a_stream_without_a_key_is_not_buffered() -> None:
    two_chunks = _TwoChunks()
    driver = RequestDriver(guard(two_chunks, MemoryStore()), http_scope())
    driver.send_body(b"{}")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.run)
        await anyio.wait_all_tasks_blocked()
        assert [message.get("body") for message in driver.messages] == [None, b"first"]
        two_chunks.go_on.set()
    assert len(driver.messages) == 3, "the chunks are those of the application"


@pytest.mark.trap(13)
async def test_a_keyed_stream_is_buffered_for_max_hold_at_most(any_store: Store, key: str) -> None:
    two_chunks = _TwoChunks()
    driver = RequestDriver(guard(two_chunks, any_store, max_hold=0.1), http_scope(headers=key_header(key)))
    driver.send_body(b"{}")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.run)
        began = anyio.current_time()
        with anyio.fail_after(30):
            await driver.first_message.wait()
        assert anyio.current_time() - began >= 0.09
        two_chunks.go_on.set()
    assert [message.get("body") for message in driver.messages] == [None, b"first", b"second"]
    again = await call(guard(two_chunks, any_store), key=key)
    assert again.status == 409
    assert b"not-replayable" in again.body


@pytest.mark.trap(14)
async def test_a_stream_that_raises_is_not_recorded_as_a_success(any_store: Store, key: str) -> None:
    runs = []

    async def failing_stream(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        runs.append(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        if len(runs) == 1:
            raise RuntimeError("the generator failed")
        await send({"type": "http.response.body", "body": b"three"})

    app = guard(failing_stream, any_store)
    driver = RequestDriver(app, http_scope(headers=key_header(key)))
    driver.send_body(b"{}")
    with pytest.raises(RuntimeError, match="the generator failed"):
        await driver.run()
    assert driver.messages == [], "nothing was sent, so that the server can answer 500"
    again = await call(app, key=key)
    assert (again.status, again.body, again.replayed) == (200, b"onetwothree", False)


@pytest.mark.trap(14)
async def test_at_most_once_records_a_stream_that_raises_as_a_failure(any_store: Store, key: str) -> None:
    async def failing_stream(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        raise RuntimeError("the generator failed")

    app = guard(failing_stream, any_store, policy=Policy.at_most_once())
    with pytest.raises(RuntimeError):
        await call(app, key=key)
    again = await call(app, key=key)
    assert (again.status, again.replayed) == (500, True)
    assert again.body != b"one"


@pytest.mark.trap(15)
@pytest.mark.parametrize("chunks", [1, 32])
async def test_an_answer_over_the_limit_is_sent_whole_and_its_retry_gets_409(
    chunks: int, any_store: Store, key: str
) -> None:
    runs, events = [], list[Event]()
    whole = [bytes([65 + index]) * (2_097_152 // chunks) for index in range(chunks)]

    async def large(scope: Any, receive: Any, send: Any) -> None:
        runs.append(await read_body(receive))
        await respond(send, whole)

    app = IdempotencyMiddleware(large, store=any_store, tenant=one_tenant(), hooks=[events.append])
    first = await call(app, key=key)
    assert (first.status, first.body) == (200, b"".join(whole))
    assert first.header("idempotency-expires-in") is None, "an answer that is not replayable has no expiry"
    again = await call(app, key=key)
    assert again.status == 409
    assert b"not-replayable" in again.body
    assert len(runs) == 1
    assert [event.result for event in events if isinstance(event, Settled)] == ["unreplayable"]


@pytest.mark.trap(16)
@pytest.mark.parametrize("has_length", [True, False], ids=["content-length", "chunked"])
async def test_a_keyed_body_over_the_limit_is_refused_and_runs_nothing(
    has_length: bool, any_store: Store, key: str
) -> None:
    charges = Charges()
    app = guard(charges, any_store, max_request_bytes=1000)
    headers = [("content-length", "1001")] if has_length else []
    answer = await call(app, key=key, headers=headers, body=[b"x" * 500, b"x" * 501])
    assert answer.status == 413
    assert charges.runs == 0
    assert await any_store.get(StorageKey(key)) is None
    assert (await call(app, key=key, body=b"x" * 1000)).status == 201, (
        "the limit itself is allowed, the key unused"
    )


@pytest.mark.trap(17)
async def test_a_large_upload_without_a_key_is_passed_on_chunk_by_chunk() -> None:
    chunk, sizes, held = b"x" * 65_536, [], []

    async def count(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await respond(send, b"done")

    remaining = 1600  # 100 MiB

    async def receive() -> Any:
        nonlocal remaining
        remaining -= 1
        held.append(1600 - remaining - len(sizes))  # chunks read, and not yet passed on
        return {"type": "http.request", "body": chunk, "more_body": remaining > 0}

    async def send(message: Any) -> None:
        pass

    await guard(count, MemoryStore())(http_scope(), receive, send)
    assert (len(sizes), sum(sizes)) == (1600, 104_857_600)
    assert max(held) == 1
