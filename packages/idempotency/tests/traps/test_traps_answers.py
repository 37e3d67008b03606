"""Traps 18 to 23: a replay equals the first answer, and an answer is sent also if it cannot be recorded."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from asgi_driver import call
from effects import Charges, PatchedStore, guard, read_body, respond, unavailable
from patience import until_lapsed
from servers import SERVERS, serve
from wire import post

from idempotency import IdempotencyMiddleware, NotReplayable, Policy, StorageKey, idempotent, one_tenant
from idempotency.errors import CorruptRecord
from idempotency.events import Event, StoreFailed
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

LEASE = 0.3


def answering(status: int = 200, headers: Any = (), body: bytes | list[bytes] = b"") -> Any:
    """An application that always gives this answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        await read_body(receive)
        await respond(send, body, status=status, headers=headers)

    return app


@pytest.mark.trap(18)
@pytest.mark.rule("E7")
async def test_repeated_headers_are_replayed_in_order(any_store: Store, key: str) -> None:
    headers = [
        (b"link", b"</a>; rel=next"),
        (b"x-between", b"1"),
        (b"Link", b"</b>; rel=prev"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"vary", b"accept"),
        (b"vary", b"origin"),
    ]
    app = guard(answering(headers=headers), any_store)
    first, again = await call(app, key=key), await call(app, key=key)
    assert first.values("set-cookie") == [b"a=1", b"b=2"]
    assert first.kept_headers == headers, "the first caller gets what the application sent"
    kept = [(name.lower(), value) for name, value in headers if name != b"set-cookie"]
    assert again.kept_headers == [*kept, (b"content-length", b"0")], "only the first caller gets cookies"


@pytest.mark.trap(18)
async def test_repeated_cookies_are_replayed_where_the_policy_keeps_them(any_store: Store, key: str) -> None:
    app = guard(
        answering(headers=[(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]),
        any_store,
        drop_headers=frozenset(),
    )
    await call(app, key=key)
    assert (await call(app, key=key)).values("set-cookie") == [b"a=1", b"b=2"]


@pytest.mark.trap(18)
async def test_headers_given_as_an_iterator_are_sent_and_replayed(key: str) -> None:
    """ASGI asks for an iterable, so that one which can be read only once is allowed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        def headers() -> Iterator[tuple[bytes, bytes]]:
            yield b"x-one", b"1"

        await send({"type": "http.response.start", "status": 200, "headers": headers()})
        await send({"type": "http.response.body", "body": b"ok"})

    guarded = guard(app, MemoryStore())
    first, again = await call(guarded, key=key), await call(guarded, key=key)
    assert first.values("x-one") == again.values("x-one") == [b"1"]


@pytest.mark.trap(19)
@pytest.mark.rule("E7")
async def test_header_bytes_beyond_ascii_are_replayed_unchanged(any_store: Store, key: str) -> None:
    value = bytes([0xE9, 0xFF, 0x80, 0x22, 0x5C])
    app = guard(answering(headers=[(b"x-name", value)]), any_store)
    first, again = await call(app, key=key), await call(app, key=key)
    assert again.replayed
    assert first.header("x-name") == again.header("x-name") == value


@pytest.mark.trap(20)
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"\x00\xff\xfe not UTF-8"),
        (200, 'déjà vu \U0001f600\u2028\x00"\\'.encode()),
        (200, b"\xef\xbb\xbf{}"),
        (201, b'{"n": 1.0}'),
        (204, b""),
        (303, b""),
        (304, b""),
        (422, b"no"),
    ],
)
async def test_any_status_and_body_is_replayed_unchanged(
    status: int, body: bytes, any_store: Store, key: str
) -> None:
    app = guard(answering(status, [(b"x-one", b"1")], body), any_store)
    first, again = await call(app, key=key), await call(app, key=key)
    assert (first.replayed, again.replayed) == (False, True)
    assert (again.status, again.body) == (first.status, first.body) == (status, body)
    if status in {204, 304}:
        assert again.header("content-length") is None
    else:
        assert again.header("content-length") == b"%d" % len(body)


@pytest.mark.trap(20)
@pytest.mark.parametrize("status", [204, 303, 304])
@pytest.mark.parametrize("server", SERVERS)
async def test_an_answer_without_a_body_is_replayed_over_a_socket(server: str, status: int, key: str) -> None:
    async with serve(guard(answering(status, [(b"location", b"/x")]), MemoryStore()), server) as port:
        first, again = await post(port, key=key), await post(port, key=key)
    assert (again.status, again.body, again.replayed) == (status, b"", True)
    assert again.values("location") == [b"/x"]
    if status != 303:
        assert again.values("content-length") == first.values("content-length") == []


@pytest.mark.trap(21)
@pytest.mark.parametrize("server", SERVERS)
async def test_a_replay_of_a_chunked_answer_has_its_own_framing_and_date(
    server: str, any_store: Store, key: str
) -> None:
    headers = [
        (b"transfer-encoding", b"chunked"),
        (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
        (b"connection", b"x-hop"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"x-end", b"1"),
    ]
    if server == "hypercorn":
        headers = headers[1:]  # h11 under hypercorn frames the answer itself
    app = guard(answering(headers=headers, body=[b"one", b"two"]), any_store)
    async with serve(app, server) as port:
        first, again = await post(port, key=key), await post(port, key=key)
    assert first.body == again.body == b"onetwo"
    assert (again.replayed, again.values("content-length")) == (True, [b"6"])
    assert again.values("x-end") == [b"1"]
    for name in ("transfer-encoding", "connection", "x-hop", "keep-alive"):
        assert again.values(name) == []
    assert [value for value in again.values("date") if b"1970" in value] == []


@pytest.mark.trap(21)
async def test_a_wrong_content_length_is_corrected_in_the_replay(key: str) -> None:
    app = guard(answering(headers=[(b"content-length", b"99")], body=b"short"), MemoryStore())
    await call(app, key=key)
    assert (await call(app, key=key)).header("content-length") == b"5"


@pytest.mark.trap(22)
@pytest.mark.parametrize("error", [unavailable, "a driver's error"], ids=["unavailable", "bug"])
@pytest.mark.rule("E8")
async def test_an_answer_is_sent_although_recording_it_fails(error: Any, any_store: Store, key: str) -> None:
    events: list[Event] = []

    async def broken(store: Store, *args: Any, **kwargs: Any) -> Any:
        raise OSError("a driver's error")

    charges = Charges()
    store = PatchedStore(any_store, complete=unavailable if error is unavailable else broken)
    app = IdempotencyMiddleware(
        charges, store=store, tenant=one_tenant(), policy=Policy(lease=6.0), hooks=[events.append]
    )
    first = await call(app, key=key)
    assert (first.status, first.body) == (201, b'{"charge": 1}')
    assert first.header("idempotency-expires-in") is None, "an answer that is not recorded has no expiry"
    assert [event.action for event in events if isinstance(event, StoreFailed)] == ["unrecorded"]
    assert (await call(app, key=key)).status == 409, "the key is held until its lease lapses"
    assert charges.runs == 1


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(22)
async def test_an_unrecorded_run_is_repeated_after_its_lease(any_store: Store, key: str) -> None:
    charges = Charges()
    await call(guard(charges, PatchedStore(any_store, complete=unavailable), lease=LEASE), key=key)
    await until_lapsed(any_store, StorageKey(key))
    assert (await call(guard(charges, any_store, lease=LEASE), key=key)).body == b'{"charge": 2}'


@pytest.mark.trap(22)
async def test_a_completion_that_fails_once_is_retried(any_store: Store, key: str) -> None:
    failures = iter([True])

    async def once(store: Store, *args: Any, **kwargs: Any) -> Any:
        if next(failures, False):
            return await unavailable(store)
        return await store.complete(*args, **kwargs)

    app = guard(Charges(), PatchedStore(any_store, complete=once))
    assert (await call(app, key=key)).status == 201
    assert (await call(app, key=key)).replayed


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(23)
async def test_a_key_whose_outcome_cannot_be_stored_is_free_after_its_lease(
    any_store: Store, key: str
) -> None:
    async def refuse(store: Store, *args: Any, **kwargs: Any) -> Any:
        raise CorruptRecord("this outcome cannot be stored")

    charges = Charges()
    assert (
        await call(guard(charges, PatchedStore(any_store, complete=refuse), lease=LEASE), key=key)
    ).status == 201
    await until_lapsed(any_store, StorageKey(key))
    assert (await call(guard(charges, any_store, lease=LEASE), key=key)).status == 201


@pytest.mark.trap(23)
async def test_a_return_type_that_cannot_be_recorded_is_refused_at_decoration(any_store: Store) -> None:
    async def charge(name: str) -> datetime:
        return datetime.now(UTC)

    with pytest.raises(TypeError, match="datetime"):
        idempotent(store=any_store, operation="charge", key=lambda name: name)(charge)


@pytest.mark.trap(23)
async def test_a_value_that_cannot_be_recorded_is_returned_once_and_then_not_replayable(
    any_store: Store, key: str
) -> None:
    charged: list[str] = []

    @idempotent(store=any_store, operation="charge", key=lambda name: name)
    async def charge(name: str) -> Any:
        charged.append(name)
        return datetime.now(UTC)

    assert isinstance(await charge(key), datetime), "the caller gets what was returned"
    with pytest.raises(NotReplayable):
        await charge(key)
    assert charged == [key]
