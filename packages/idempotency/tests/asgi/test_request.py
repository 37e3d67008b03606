"""How the middleware reads a request: body, preferred wait, fingerprint, and its identifiers in events."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from asgi_driver import RequestDriver, call, http_scope, key_header
from effects import Charges, PatchedStore, guard, read_body, respond, unavailable

from idempotency import (
    Fingerprint,
    IdempotencyMiddleware,
    Policy,
    RequestView,
    StorageKey,
    canonical_json,
    one_tenant,
)
from idempotency._core.actions import Refuse
from idempotency._core.errors import MissingKey
from idempotency._core.types import key_id
from idempotency.asgi.middleware import full_path
from idempotency.events import Event, Refused
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

KEY = StorageKey("k")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def test_disconnect_before_the_body_sends_nothing_and_runs_nothing(store: MemoryStore) -> None:
    charges = Charges()
    driver = RequestDriver(guard(charges, store), http_scope(headers=key_header("k")))
    driver.disconnect()
    answer = await driver.run()
    assert (answer.messages, charges.runs, await store.get(KEY)) == ([], 0, None)


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({"path": "/a b"}, "/a b"),
        ({"path": "/a b", "raw_path": None}, "/a b"),
        ({"path": "/a b", "raw_path": b"/a%20b"}, "/a%20b"),
        ({"path": "/a", "raw_path": b"/a?x=1"}, "/a"),
        ({"path": "/a?b"}, "/a?b"),
        ({"path": "/a", "root_path": "/api"}, "/api/a"),
        ({"path": "/api/a", "root_path": "/api"}, "/api/a"),
        ({"path": "/a", "raw_path": b"/a?/api", "root_path": "/api"}, "/api/a"),
    ],
)
def test_path_is_the_sent_one_without_its_query_and_with_the_prefix_of_a_mount(
    scope: dict[str, Any], path: str
) -> None:
    assert full_path(scope) == path


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_app_receives_bytes_copied_from_the_servers_buffer(kind: Any, store: MemoryStore) -> None:
    buffer = bytearray(b"one")
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        buffer[:] = b"two"  # a server may reuse its buffer
        seen.append(await receive())
        await respond(send)

    async def receive() -> Any:
        return {"type": "http.request", "body": kind(buffer), "more_body": False}

    async def send(message: Any) -> None:
        pass

    await guard(app, store)(http_scope(headers=key_header("k")), receive, send)
    assert seen == [{"type": "http.request", "body": b"one", "more_body": False}]
    assert type(seen[0]["body"]) is bytes


async def test_bypassed_run_receives_its_body_and_the_disconnect(store: MemoryStore) -> None:
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append(await read_body(receive))
        await respond(send)
        received.append((await receive())["type"])

    without_store = PatchedStore(store, acquire=unavailable, release=unavailable)
    answer = await call(guard(app, without_store, on_store_error="bypass"), key="k", body=b"{}")
    assert (answer.status, received) == (200, [b"{}", "http.disconnect"])


@pytest.mark.parametrize(
    ("settings", "headers", "wait"),
    [
        ({"wait": 3, "prefer_wait": 0}, [("prefer", "wait=10")], 3),
        ({"wait": 3, "prefer_wait": 0.5}, [("prefer", "wait=10")], 0.5),
        ({"wait": 3, "prefer_wait": 5}, [("prefer", "wait=10")], 5),
        ({"wait": 3, "prefer_wait": 5}, [("prefer", "wait=1")], 1),
        ({"wait": 3, "prefer_wait": 5}, [("prefer", 'respond-async; x, Wait="2"')], 2),
        ({"wait": 3, "prefer_wait": 5}, [("x-hint", "wait=1"), ("prefer", "await=1")], 3),
        ({"wait": 3, "prefer_wait": 5}, [], 3),
    ],
)
async def test_wait_is_the_preferred_one_capped_by_prefer_wait(
    settings: dict[str, float], headers: list[tuple[str, str]], wait: float, store: MemoryStore
) -> None:
    app, asked = guard(Charges(), store, **settings), []

    async def begin(ask: Any) -> Refuse:
        asked.append(ask.wait)
        return Refuse(MissingKey())

    app.engine.begin = begin  # type: ignore[method-assign,assignment]
    await call(app, key="k", headers=headers)
    assert asked == [wait]


# Records outlive a deployment: a new release may not change the fingerprint of a request.
@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (None, [b"POST", b"/charges", b"x=1", b"application/json", b"", b'{"a":1}']),
        (canonical_json, [b"POST", b"/charges", b"x=1", canonical_json]),
    ],
)
async def test_request_fingerprint_is_stable_across_releases(
    function: Any, parts: list[Any], store: MemoryStore
) -> None:
    headers = [("content-type", "application/json")]
    settings = {} if function is None else {"fingerprint": function}
    await call(guard(Charges(), store, **settings), key="k", headers=headers, query=b"x=1", body=b'{"a":1}')
    # JSON, content type, content encoding, and the canonical form of an object with one member.
    if function is not None:
        json_parts = [b"json", b"application/json", b"", b"o1:s1:an1:1"]
        parts[-1] = _digest(json_parts)
    record = await store.get(KEY)
    assert record is not None
    assert record.fingerprint == _digest(parts)


def _digest(parts: list[bytes]) -> bytes:
    """SHA-256 over the lengths of the parts, eight bytes each, and the parts."""
    return sha256(b"".join([*(len(part).to_bytes(8, "big") for part in parts), *parts])).digest()


@pytest.mark.rule("E9")
async def test_fingerprint_function_gets_the_whole_request(store: MemoryStore) -> None:
    seen = []

    def fingerprint(view: RequestView) -> Fingerprint:
        seen.append(view)
        return Fingerprint(b"f")

    app = IdempotencyMiddleware(
        Charges(), store=store, tenant=lambda scope: "alice", policy=Policy(fingerprint=fingerprint)
    )
    await call(app, key="k", query=b"x=1", body=b"{}")
    headers = [(b"idempotency-key", b'"k"')]
    assert seen == [RequestView("POST", "/charges", b"x=1", headers, b"{}", "alice")]


async def test_events_carry_operation_and_key_id_unless_the_key_is_unreadable(
    store: MemoryStore,
) -> None:
    events: list[Event] = []
    app = IdempotencyMiddleware(Charges(), store=store, tenant=one_tenant(), hooks=[events.append])
    await call(app, key="k")
    await call(app, key="k")
    await call(app, key="k", body=b"another")
    await call(app, key=" ")
    assert [(type(event).__name__, event.operation) for event in events] == [
        (name, "POST /charges") for name in ("Claimed", "Settled", "Replayed", "Refused", "Refused")
    ]
    assert [event.key_id for event in events] == [key_id(KEY)] * 4 + [None]
    assert [event.status for event in events if isinstance(event, Refused)] == [422, 400]
