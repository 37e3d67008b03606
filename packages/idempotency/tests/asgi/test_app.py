"""The ASGI middleware under asyncio and trio: duplicates, leases, streams, and applications that break ASGI."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from asgi_driver import RequestDriver, call, http_scope, key_header
from effects import Charges, PatchedStore, followers, guard, read_body, respond
from patience import PATIENCE, until, until_lapsed

from idempotency import IdempotencyMiddleware, Policy, StorageKey, one_tenant
from idempotency.errors import IdempotencyError
from idempotency.events import Event, Refused, Replayed, Settled
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore
from idempotency.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """The stores that run on both loops."""
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "records.db")
    yield store
    await store.aclose()


# Duplicates, leases and limits.


async def test_duplicate_is_replayed_and_other_body_is_a_mismatch(store: Store) -> None:
    charges = Charges()
    app = guard(charges, store)
    first, again = await call(app, key="k"), await call(app, key="k")
    other = await call(app, key="k", body=b"other")
    assert [first.status, again.status, other.status] == [201, 201, 422]
    assert (again.replayed, charges.runs) == (True, 1)


async def test_concurrent_duplicates_wait_and_get_the_first_response(store: Store) -> None:
    async def work(number: int) -> None:
        await until(lambda: followers(app.engine) == 7)

    charges, answers = Charges(work), []
    app = guard(charges, store, wait=PATIENCE)

    async def duplicate() -> None:
        answers.append(await call(app, key="k"))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(duplicate)
    assert {answer.body for answer in answers} == {b'{"charge": 1}'}


@pytest.mark.real_time("a duplicate in another engine polls after real pauses")
async def test_waiting_duplicates_of_other_engines_poll_the_store(store: Store) -> None:
    async def work(number: int) -> None:
        await anyio.wait_all_tasks_blocked()  # the other duplicates are between two polls

    charges, answers = Charges(work), []

    async def duplicate(app: Any) -> None:
        answers.append(await call(app, key="k"))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):  # one engine each, as in three processes
                tasks.start_soon(duplicate, guard(charges, store, wait=PATIENCE))
    assert [answer.body for answer in answers] == [b'{"charge": 1}'] * 3


@pytest.mark.real_time("a lease is renewed by a real timer")
@pytest.mark.rule("E3")
async def test_handler_that_outlives_its_lease_keeps_its_key(store: Store) -> None:
    go_on = anyio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges, answers = Charges(work), []
    watched = PatchedStore(store)
    app = guard(charges, watched, lease=1.2)

    async def first() -> None:
        answers.append(await call(app, key="k"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await until(lambda: watched.calls.get("renew", 0) >= 4)  # one each third of the lease
        assert (await call(app, key="k")).status == 409
        go_on.set()
    assert (answers[0].status, charges.runs) == (201, 1)


@pytest.mark.real_time("a lease runs out")
@pytest.mark.rule("E4")
async def test_cancelled_run_keeps_its_key_until_its_lease_ends(store: Store) -> None:
    started = anyio.Event()

    async def work(number: int) -> None:
        if number == 1:
            started.set()
            await anyio.sleep_forever()

    charges, events = Charges(work), list[Event]()
    app = IdempotencyMiddleware(
        charges, store=store, tenant=one_tenant(), policy=Policy(lease=1.2), hooks=[events.append]
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: call(app, key="k"))
        await started.wait()
        tasks.cancel_scope.cancel()
    assert [event.result for event in events if isinstance(event, Settled)] == ["abandoned"]
    assert (await call(app, key="k")).status == 409
    await until_lapsed(store, StorageKey("k"))
    assert (await call(app, key="k")).status == 201


@pytest.mark.rule("E2")
async def test_stream_longer_than_max_hold_is_sent_and_not_replayed(store: Store) -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(4):
            if number == 2:
                await driver.first_message.wait()  # the chunks that were buffered until now
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": number < 3})

    app = guard(stream, store, max_hold=0.08)
    driver = RequestDriver(app, http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    with anyio.fail_after(PATIENCE):
        assert (await driver.run()).body == b"0123"
    assert (await call(app, key="k")).status == 409


async def test_body_slower_than_body_timeout_is_refused_with_408(store: Store) -> None:
    driver = RequestDriver(guard(Charges(), store, body_timeout=0.05), http_scope(headers=key_header("k")))
    driver.send_body(b"half", more_body=True)
    with anyio.fail_after(30):
        answer = await driver.run()
    assert answer.status == 408
    assert await store.get(StorageKey("k")) is None


async def test_refusal_sends_connection_close_over_http_1_only(store: Store) -> None:
    """HTTP/2 forbids the Connection header (RFC 9113, 8.2.2); some servers remove it, others fail."""
    app = guard(Charges(), store, max_request_bytes=1)
    for version, closes in (("1.1", [b"close"]), ("2", []), ("3", [])):
        answer = await call(app, key="k", body=b"{}", http_version=version)
        assert (answer.status, answer.values("connection")) == (413, closes)


@pytest.mark.rule("E5")
async def test_disconnect_is_hidden_from_the_app_until_its_response_is_recorded(store: Store) -> None:
    seen: list[str] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)

        async def listen() -> None:
            seen.append((await receive())["type"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            assert seen == [], (
                "the client has disconnected; the application is not told before its response is recorded"
            )
            await respond(send, b"done")

    app = guard(listening, store)
    driver = RequestDriver(app, http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    driver.disconnect()
    with anyio.fail_after(30):
        await driver.run()
    assert seen == ["http.disconnect"]
    assert (await call(app, key="k")).replayed


# An application that breaks ASGI, or fails in the middle of its response.


async def test_app_without_response_frees_the_key(store: Store) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)

    assert (await call(guard(silent, store), key="k")).status is None
    assert (await call(guard(Charges(), store), key="k")).status == 201


async def test_app_without_response_is_replayed_as_500_at_most_once(store: Store) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)

    policy = Policy.at_most_once()
    await call(guard(silent, store, policy=policy), key="k")
    again = await call(guard(Charges(), store, policy=policy), key="k")
    assert (again.status, again.replayed) == (500, True)


async def test_partial_response_is_sent_as_it_is_and_frees_the_key(store: Store) -> None:
    async def partial(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    first = await call(guard(partial, store), key="k")
    assert (first.status, first.body, first.complete) == (200, b"half", False)
    assert (await call(guard(Charges(), store), key="k")).status == 201


async def test_second_response_start_raises_and_frees_the_key(store: Store) -> None:
    """Such as an error page that a layer sends after a stream has begun."""

    async def twice(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await respond(send, b"an error page", status=400)

    with pytest.raises(RuntimeError, match="twice"):
        await call(guard(twice, store), key="k")
    assert (await call(guard(Charges(), store), key="k")).status == 201


async def test_exception_after_complete_response_keeps_the_record(store: Store) -> None:
    async def late(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await respond(send, b"done")
        raise LookupError("too late to matter")

    app = guard(late, store)
    with pytest.raises(LookupError):
        await call(app, key="k")
    assert (await call(app, key="k")).replayed


async def test_exception_after_unreplayable_record_does_not_free_the_key(store: Store) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
        raise LookupError("half-way")

    app = guard(broken, store, max_response_bytes=10)
    driver = RequestDriver(app, http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    with pytest.raises(LookupError):
        await driver.run()
    assert [message["type"] for message in driver.messages] == ["http.response.start", "http.response.body"]
    assert (await call(app, key="k")).status == 409


@pytest.mark.parametrize("status", [200, 503])
async def test_oversized_response_is_sent_whole_and_recorded_only_if_its_status_is_kept(
    status: int, store: Store
) -> None:
    async def large(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, [b"x" * 8, b"y" * 8], status=status)

    app = guard(large, store, max_response_bytes=10)
    answer = await call(app, key="k")
    assert (answer.status, answer.body, answer.complete) == (status, b"x" * 8 + b"y" * 8, True)
    again = await call(app, key="k")
    assert again.status == {200: 409, 503: 503}[status], (
        "a status that is not kept frees its key, whatever the length"
    )


@pytest.mark.parametrize("ends", ["by returning", "by raising"])
async def test_nothing_is_sent_after_the_app_has_ended(ends: str, store: Store) -> None:
    """The application ends while the max_hold timer records the response as unreplayable."""
    recording = anyio.Event()

    async def complete_slowly(real: Store, *args: Any, **kwargs: Any) -> bool:
        recording.set()
        await anyio.wait_all_tasks_blocked()  # the application has ended
        return await real.complete(*args, **kwargs)

    async def send_one_chunk(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"drop", "more_body": True})
        await recording.wait()
        if ends == "by raising":
            raise LookupError("half-way")

    app = guard(send_one_chunk, PatchedStore(store, complete=complete_slowly), max_hold=0.02)
    driver = RequestDriver(app, http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    with pytest.raises(LookupError) if ends == "by raising" else contextlib.nullcontext():
        await driver.run()
    sent = len(driver.messages)
    await anyio.wait_all_tasks_blocked()
    assert [len(driver.messages), sent] == [2, 2]
    assert (await call(app, key="k")).status == 409, "the record stays"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_base_exception_propagates_and_leaves_the_key_to_its_lease(error: type[BaseException]) -> None:
    async def dying(scope: Any, receive: Any, send: Any) -> None:
        raise error

    store = MemoryStore()
    app = guard(dying, store)
    with pytest.raises(error):
        await call(app, key="k")
    record = await store.get(StorageKey("k"))
    assert record is not None
    assert record.lease_left > 0, "the outcome is unknown, so the lease decides"


async def test_messages_after_complete_response_reach_the_server(store: Store) -> None:
    """The server decides what to do about an application that sends more."""

    async def send_more(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"done")
        await send({"type": "http.response.body", "body": b"more"})

    answer = await call(guard(send_more, store), key="k")
    assert answer.chunks == [b"done", b"more"]


async def test_response_body_may_be_bytearray_or_memoryview(store: Store) -> None:
    async def buffers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytearray(b"one"), "more_body": True})
        await send({"type": "http.response.body", "body": memoryview(b"two")})

    app = guard(buffers, store)
    await call(app, key="k")
    assert (await call(app, key="k")).body == b"onetwo"


async def test_body_message_without_fields_ends_the_response(store: Store) -> None:
    async def minimal(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 202})
        await send({"type": "http.response.body"})

    app = guard(minimal, store)
    for replayed in (False, True):
        answer = await call(app, key="k", body=b"")
        assert (answer.status, answer.body, answer.replayed) == (202, b"", replayed)


@pytest.mark.rule("E6")
async def test_extensions_that_bypass_recording_are_hidden_from_keyed_requests_only(store: Store) -> None:
    names = ["pathsend", "zerocopysend", "trailers", "push", "early_hint"]
    extensions = {f"http.response.{name}": {} for name in names} | {"tls": {"version": 1}}
    charges = Charges()
    scope = {"extensions": extensions}
    await call(guard(charges, store), key="k", **scope)
    await call(guard(charges, store), **scope)
    assert charges.scopes[0]["extensions"] == {"tls": {"version": 1}}
    assert charges.scopes[1]["extensions"] is extensions
    assert len(extensions) == 6, "the server's own scope is unchanged"


async def test_policy_function_may_return_another_policy_or_none_for_a_route(store: Store) -> None:
    def policy(scope: Any) -> Policy | None:
        return {"/charges": Policy(required=True), "/logs": None}.get(scope["path"], Policy())

    app = guard(charges := Charges(), store, policy=policy)
    assert (await call(app)).status == 400
    assert (await call(app, path="/logs", key="k")).status == 201
    assert (await call(app, path="/logs", key="k")).status == 201
    assert (await call(app, path="/other", key="k")).status == 201
    assert (await call(app, path="/other", key="k")).replayed
    assert charges.runs == 3


async def test_hook_that_raises_is_logged_and_changes_no_response(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise LookupError("the exporter is down")

    events: list[Event] = []
    app = IdempotencyMiddleware(Charges(), store=store, tenant=one_tenant(), hooks=[broken, events.append])
    await call(app, key="k")
    assert (await call(app, key="k")).replayed
    assert (await call(app, key="k", body=b"other")).status == 422
    assert [type(event).__name__ for event in events] == ["Claimed", "Settled", "Replayed", "Refused"]
    assert isinstance(events[2], Replayed)
    assert isinstance(events[3], Refused)
    assert (events[3].problem, events[3].status) == ("key-reused", 422)
    assert "the exporter is down" in caplog.text


async def test_redaction_changes_the_record_but_not_the_first_response(store: Store) -> None:
    app = guard(Charges(), store, redact=lambda response: response._replace(body=b"[redacted]", headers=[]))
    assert (await call(app, key="k")).body == b'{"charge": 1}'
    assert (await call(app, key="k")).body == b"[redacted]"


@pytest.mark.rule("E2")
async def test_redaction_that_raises_leaves_the_first_response_and_makes_it_unreplayable(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(response: Any) -> Any:
        raise LookupError(response.body)

    charges = Charges()
    app = guard(charges, store, redact=broken)
    first, again = await call(app, key="k"), await call(app, key="k")
    assert (first.status, first.body, first.complete) == (201, b'{"charge": 1}', True)
    assert (again.status, charges.runs) == (409, 1), "the effect has happened: nothing may run again"
    assert b"redaction raised LookupError" in again.body
    assert "LookupError" in caplog.text
    assert "charge" not in caplog.text, "the exception may quote the body"


async def test_fingerprint_function_that_raises_runs_and_claims_nothing(store: Store) -> None:
    def broken(view: Any) -> Any:
        raise LookupError("a bug of the function's")

    charges = Charges()
    with pytest.raises(LookupError):
        await call(guard(charges, store, fingerprint=broken), key="k")
    assert charges.runs == 0
    assert await store.get(StorageKey("k")) is None


async def test_store_that_raises_a_driver_error_runs_nothing(store: Store) -> None:
    async def broken(inner: Store, *args: Any, **kwargs: Any) -> Any:
        raise OSError("a driver's error that should have been a StoreUnavailable")

    charges = Charges()
    with pytest.raises(OSError, match="driver"):
        await call(guard(charges, PatchedStore(store, acquire=broken)), key="k")
    assert charges.runs == 0


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("error", [IdempotencyError, TimeoutError])
async def test_library_error_raised_by_the_handler_propagates_and_frees_the_key(
    error: type[Exception], layers: int, store: Store
) -> None:
    """A handler that uses this library may raise its errors: they are not taken for errors of the middleware."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise error("of another operation")

    app: Any = failing
    for _ in range(layers):
        app = guard(app, store)
    with pytest.raises(error, match="of another operation"):
        await call(app, key="k")
    assert (await call(guard(Charges(), store), key="k")).status == 201


@pytest.mark.rule("E10")
async def test_inner_layer_joins_the_claim_outside_a_layer_of_another_tenant(store: Store) -> None:
    charges = Charges()
    inner = IdempotencyMiddleware(guard(charges, store), store=store, tenant=lambda scope: "another")
    answer = await call(guard(inner, store), key="k")
    assert (answer.status, charges.runs) == (201, 1)


# Event loops and threads.


def test_one_middleware_serves_several_event_loops_in_turn() -> None:
    charges = Charges()
    app = guard(charges, MemoryStore(), wait=1)
    statuses = [asyncio.run(call(app, key="k")).replayed for _ in range(3)]
    assert statuses == [False, True, True]


def test_running_outside_an_event_loop_is_an_error() -> None:
    from idempotency._runtime.event_loop import running

    with pytest.raises(RuntimeError, match=r"asyncio|trio|async"):
        running()


async def test_middleware_shared_by_32_event_loop_threads_runs_each_key_once() -> None:
    charges = Charges()
    app = guard(charges, MemoryStore())

    def worker() -> list[int | None]:
        async def work() -> list[int | None]:
            return [(await call(app, key=f"k{number}")).status for number in range(10)]

        return asyncio.run(work())

    results: list[list[int | None]] = []
    async with anyio.create_task_group() as tasks:

        async def run_worker() -> None:
            results.append(await anyio.to_thread.run_sync(worker))

        for _ in range(32):
            tasks.start_soon(run_worker)
    assert {status for result in results for status in result} <= {201, 409}
    assert charges.runs == 10
