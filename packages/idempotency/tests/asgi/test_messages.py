"""The ASGI messages that the middleware passes between application and server, in every order that ASGI allows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from asgi_driver import RequestDriver, call, http_scope, key_header
from effects import Charges, guard, read_body, respond

from idempotency import Acquired, Claim, Fingerprint, StorageKey, current_claim
from idempotency._core.outcome import Response, encode_response
from idempotency.engine.owner import new_owner
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

KEY = StorageKey("k")
START = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def chunk(body: bytes, *, more_body: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


async def send_event_stream(store: MemoryStore, send: Any) -> None:
    """Respond with an event stream: it is recorded as unreplayable, and sent from its first message on."""
    await send({**START, "headers": [(b"content-type", b"text/event-stream")]})


async def respond_after_takeover(store: MemoryStore, send: Any) -> None:
    """Respond after another owner has completed the key: its response is sent instead."""
    found = await store.get(KEY)
    assert found is not None
    await store.forget(KEY)
    reply = await store.acquire(
        KEY, fingerprint=Fingerprint(found.fingerprint), owner=new_owner(), lease=30, retention=60
    )
    assert isinstance(reply, Acquired)
    assert await store.complete(reply.claim, encode_response(Response(201, [], b"theirs")), retention=60)
    await respond(send, b"ours")


Responder = Callable[[MemoryStore, Any], Awaitable[None]]


class CountingStore(MemoryStore):
    """Keeps the number of messages that had been sent when an outcome was recorded or a key freed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Any] = []  # the messages that the test's client has received
        self.seen: list[int] = []

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        self.seen.append(len(self.sent))
        return await super().complete(claim, outcome, retention=retention)

    async def release(self, claim: Claim) -> bool:
        self.seen.append(len(self.sent))
        return await super().release(claim)


@pytest.mark.rule("E1")
@pytest.mark.parametrize("status", [200, 402, 503])
async def test_outcome_is_recorded_or_key_freed_before_the_first_message_is_sent(status: int) -> None:
    store = CountingStore()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "status": status})
        await send(chunk(b"first "))
        await send(chunk(b"last", more_body=False))

    driver = RequestDriver(guard(app, store), http_scope(headers=key_header("k")))
    store.sent = driver.messages
    driver.send_body(b"")
    answer = await driver.run()

    assert (answer.status, answer.body, store.seen) == (status, b"first last", [0])


@pytest.mark.parametrize("responder", [send_event_stream, respond_after_takeover])
async def test_receive_after_the_response_returns_the_disconnect(
    responder: Responder, store: MemoryStore
) -> None:
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await responder(store, send)
        received.append((await receive())["type"])

    driver = RequestDriver(guard(app, store), http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    driver.disconnect()
    with anyio.fail_after(30):
        await driver.run()
    assert received == ["http.disconnect"]


@pytest.mark.parametrize("responder", [send_event_stream, respond_after_takeover])
async def test_every_concurrent_receive_returns_the_disconnect(
    responder: Responder, store: MemoryStore
) -> None:
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)

        async def listen() -> None:
            received.append((await receive())["type"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            assert received == []
            await responder(store, send)

    driver = RequestDriver(guard(app, store), http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    driver.disconnect()
    with anyio.fail_after(30):
        await driver.run()
    assert received == ["http.disconnect"] * 2


async def test_disconnect_within_the_body_sends_nothing_and_runs_nothing(
    store: MemoryStore,
) -> None:
    charges = Charges()
    driver = RequestDriver(guard(charges, store), http_scope(headers=key_header("k")))
    driver.send_body(b"half", more_body=True)
    driver.disconnect()
    answer = await driver.run()
    assert (answer.messages, charges.runs, await store.get(KEY)) == ([], 0, None)


async def test_request_message_without_more_body_ends_the_body(store: MemoryStore) -> None:
    charges = Charges()
    messages = [
        {"type": "http.request", "body": b"one", "more_body": True},
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": b"two"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    await guard(charges, store)(http_scope(headers=key_header("k")), receive, send)
    assert charges.bodies == [b"onetwo"]


@pytest.mark.parametrize("pieces", [1, 3])
async def test_body_of_max_request_bytes_is_accepted_and_one_byte_more_is_refused(
    pieces: int, store: MemoryStore
) -> None:
    app = guard(Charges(), store, max_request_bytes=9)

    def body(length: int) -> list[bytes]:
        return [b"x" * (length - pieces + 1), *[b"x"] * (pieces - 1)]

    assert (await call(app, key="a", body=body(10))).status == 413
    assert (await call(app, key="a", body=body(9))).status == 201


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.rule("E2")
async def test_response_of_max_response_bytes_is_replayed_and_one_byte_more_is_not(
    pieces: int, store: MemoryStore
) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        length = int(await read_body(receive))
        await respond(send, [b"x" * (length - pieces + 1), *[b"x"] * (pieces - 1)])

    app = guard(answer, store, max_response_bytes=9)
    for key, length, status in (("a", b"9", 200), ("b", b"10", 409)):
        await call(app, key=key, body=length)
        again = await call(app, key=key, body=length)
        assert again.status == status


@pytest.mark.parametrize(
    ("header", "flows"),
    [
        ((b"content-type", b"text/event-stream"), True),
        ((b"content-type", b"Text/Event-Stream; charset=utf-8"), True),
        ((b"content-type", b"text/event-log"), False),
        ((b"x-kind", b"text/event-stream"), False),
    ],
)
@pytest.mark.rule("E2")
async def test_event_stream_is_recognised_by_content_type_and_not_buffered(
    header: tuple[bytes, bytes], flows: bool, store: MemoryStore
) -> None:
    sent_by_then: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "headers": [(b"server", b"x"), header]})
        await send(chunk(b"data: 1\n\n"))
        sent_by_then.append(len(driver.messages))
        await send(chunk(b"", more_body=False))

    driver = RequestDriver(guard(app, store), http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    await driver.run()
    assert sent_by_then == [2 if flows else 0]
    again = await call(guard(app, store), key="k")
    assert (again.status, b"an event stream" in again.body) == ((409, True) if flows else (200, False))


@pytest.mark.parametrize(
    "name", [b"idempotency-replayed", b"Idempotency-Replayed", b"Idempotency-Expires-In"]
)
async def test_idempotency_headers_set_by_the_app_are_dropped(name: bytes, store: MemoryStore) -> None:
    async def send_own_header(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, headers=[(b"x-own", b"1"), (name, b"forged"), (b"x-last", b"2")])

    answer = await call(guard(send_own_header, store), key="k")
    assert b"forged" not in [value for _, value in answer.headers]
    assert (answer.header("x-own"), answer.header("x-last")) == (b"1", b"2")


async def test_expires_in_header_is_sent_only_if_the_response_was_recorded(store: MemoryStore) -> None:
    async def forget_then_respond(scope: Any, receive: Any, send: Any) -> None:
        await store.forget(KEY)
        await respond(send, b"ours")

    assert (await call(guard(forget_then_respond, store), key="k")).header("idempotency-expires-in") is None
    assert (await call(guard(Charges(), store), key="k")).header("idempotency-expires-in") == b"86400"


async def test_messages_of_other_types_are_passed_on_at_once_and_end_nothing(store: MemoryStore) -> None:
    other = {"type": "http.response.debug", "info": {}}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(other)
        await send(START)
        await send(other)
        await send(chunk(b"done", more_body=False))

    answer = await call(guard(app, store), key="k")
    assert [message["type"].rpartition(".")[2] for message in answer.messages] == [
        "debug",
        "debug",
        "start",
        "body",
    ]
    assert answer.body == b"done"
    assert (await call(guard(app, store), key="k")).replayed


async def test_body_without_response_start_is_passed_on_and_frees_the_key(store: MemoryStore) -> None:
    async def send_body_only(scope: Any, receive: Any, send: Any) -> None:
        await send(chunk(b"done", more_body=False))

    answer = await call(guard(send_body_only, store), key="k")
    assert (answer.status, answer.body) == (None, b"done")
    assert await store.get(KEY) is None, "a body without a start counts as no response"


async def test_chunks_sent_while_the_buffer_is_flushed_come_after_it(store: MemoryStore) -> None:
    """The max_hold timer and the application both send."""
    messages: list[Any] = []
    flushing = anyio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(chunk(b"held"))
        await flushing.wait()
        await send(chunk(b"next", more_body=False))

    async def slow_server(message: Any) -> None:
        flushing.set()
        await anyio.wait_all_tasks_blocked()  # the application is blocked in its next send
        messages.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    with anyio.fail_after(30):
        await guard(stream, store, max_hold=0.02)(http_scope(headers=key_header("k")), receive, slow_server)
    assert [message.get("body") for message in messages] == [None, b"held", b"next"]


@pytest.mark.parametrize("responder", [send_event_stream, respond_after_takeover])
async def test_current_claim_is_set_throughout_the_app_and_unset_in_its_caller(
    responder: Responder, store: MemoryStore
) -> None:
    claims = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        claims.append(current_claim())
        await responder(store, send)
        claims.append(current_claim())
        await send(chunk(b"data: 1\n\n"))
        claims.append(current_claim())
        await send(chunk(b"", more_body=False))
        claims.append(current_claim())

    await call(guard(app, store), key="k")
    assert claims[0] is not None
    assert claims == [claims[0]] * 4
    assert current_claim() is None
