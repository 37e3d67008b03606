"""An application that fails after its response: reported, or with `record="return"` never recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import fastapi
import pytest
from asgi_driver import Answer, RequestDriver, call, http_scope, key_header
from effects import Charges, guard, read_body, respond
from fastapi import Depends, FastAPI
from loop_time import advance, movable
from patience import until
from servers import SERVERS, serve
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from wire import post

from idempotency import IdempotencyMiddleware, Policy, StorageKey, one_tenant
from idempotency.events import Event, FailedAfterRecord, Replayed, Settled
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return movable(request.param)


class CommitFailed(Exception):
    pass


class Bank:
    """An application that commits its effect after its response, and whose first commit fails."""

    def __init__(self, record: str = "answer", **policy: Any) -> None:
        self.runs = 0
        self.committed: list[int] = []
        self.events: list[Event] = []
        self.store = MemoryStore()
        self.settings: dict[str, Any] = {
            "store": self.store,
            "tenant": one_tenant(),
            "hooks": [self.events.append],
            "policy": Policy(record=record, **policy),  # type: ignore[arg-type]
        }

    async def cancel_request(self, app: Any, *, when: anyio.Event) -> None:
        """Send a request to *app* behind the middleware, and cancel it once *when* is set."""
        middleware = IdempotencyMiddleware(app, **self.settings)
        driver = RequestDriver(middleware, http_scope(headers=key_header("k")))
        driver.send_body(b"{}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driver.run)
            with anyio.fail_after(30):
                await when.wait()
            tasks.cancel_scope.cancel()

    async def has_recorded(self) -> bool:
        """Whether an outcome was recorded under the key that `send` uses."""
        record = await self.store.get(StorageKey("k"))
        return record is not None and record.outcome is not None

    def commit(self) -> None:
        if self.runs == 1:
            raise CommitFailed
        self.committed.append(self.runs)

    async def raw(self, scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        self.runs += 1
        await respond(send, b"done", status=201)
        self.commit()

    @property
    def plain(self) -> Any:
        return IdempotencyMiddleware(self.raw, **self.settings)

    def starlette_background(self) -> Any:
        async def charge(request: Request) -> PlainTextResponse:
            self.runs += 1
            return PlainTextResponse("done", 201, background=BackgroundTask(self.commit))

        app = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
        app.add_middleware(IdempotencyMiddleware, **self.settings)
        return app

    def starlette_stream(self) -> Any:
        """Its chunks come from a generator that commits at its end, before the response is complete."""

        async def chunks() -> AsyncIterator[bytes]:
            yield b"done"
            self.commit()

        async def charge(request: Request) -> StreamingResponse:
            self.runs += 1
            return StreamingResponse(chunks(), 201)

        app = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
        app.add_middleware(IdempotencyMiddleware, **self.settings)
        return app

    def fastapi(self, scope: str) -> Any:
        async def session() -> AsyncIterator[None]:
            yield
            self.commit()

        app = FastAPI()
        app.add_middleware(IdempotencyMiddleware, **self.settings)

        @app.post("/charges", status_code=201, dependencies=[Depends(session, scope=scope)])  # type: ignore[arg-type]
        async def charge() -> str:
            self.runs += 1
            return "done"

        return app

    def fastapi_sync(self) -> Any:
        def session() -> Any:
            yield
            self.commit()

        app = FastAPI()
        app.add_middleware(IdempotencyMiddleware, **self.settings)

        @app.post("/charges", status_code=201, dependencies=[Depends(session)])
        def charge() -> str:
            self.runs += 1
            return "done"

        return app


APPS: dict[str, Any] = {
    "plain": lambda bank: bank.plain,
    "background task": Bank.starlette_background,
    "yield dependency": lambda bank: bank.fastapi("request"),
    "plain yield dependency": Bank.fastapi_sync,
}


async def send(app: Any, key: str | None = "k") -> tuple[int | None, bool]:
    """The status, and whether the response was a replay; an exception of the application is left to the server."""
    headers = [*key_header(key), ("content-type", "application/json")]
    driver = RequestDriver(app, http_scope(headers=headers))
    driver.send_body(b"{}")
    raised = False
    try:
        await driver.run()
    except* CommitFailed:
        raised = True
    answer = Answer(driver.messages)
    if raised and answer.status is None:
        return 500, False  # as a server responds if the application raised and sent nothing
    return answer.status, answer.replayed


@pytest.mark.parametrize("name", APPS)
async def test_failure_after_recorded_response_emits_event_and_logs_the_remedy(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bank = Bank()
    app = APPS[name](bank)
    assert await send(app) == (201, False)
    assert await send(app) == (201, True)
    assert bank.committed == [], "the replay hides that there is no effect: this must be reported"
    kinds = [type(event) for event in bank.events]
    assert kinds[1:] == [Settled, FailedAfterRecord, Replayed]
    failed = bank.events[2]
    assert isinstance(failed, FailedAfterRecord)
    assert (failed.operation, failed.attempt, failed.error) == ("POST /charges", 1, "CommitFailed")
    [line] = [
        record.getMessage()
        for record in caplog.records
        if record.name == "idempotency" and record.levelname == "ERROR"
    ]
    assert "raised CommitFailed after its answer was recorded" in line
    assert 'scope="function"' in line
    assert 'record="return"' in line
    assert failed.key_id in line


@pytest.mark.parametrize("name", APPS)
async def test_record_on_return_frees_key_when_app_fails_after_response(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bank = Bank("return")
    app = APPS[name](bank)
    assert await send(app) == (500, False)
    assert await send(app) == (201, False)
    assert await send(app) == (201, True)
    assert bank.committed == [2]
    assert not [event for event in bank.events if isinstance(event, FailedAfterRecord)]
    assert not [
        record for record in caplog.records if record.name == "idempotency" and record.levelname == "ERROR"
    ]


@pytest.mark.parametrize("record", ["answer", "return"])
async def test_function_scoped_dependency_failure_gives_500_and_frees_the_key(record: str) -> None:
    bank = Bank(record)
    app = bank.fastapi("function")
    assert await send(app) == (500, False)
    assert await send(app) == (201, False)
    assert bank.committed == [2]


@pytest.mark.parametrize("record", ["answer", "return"])
async def test_stream_that_fails_before_its_end_is_not_recorded(record: str) -> None:
    bank = Bank(record)
    app = bank.starlette_stream()
    assert (await send(app))[1] is False
    assert await send(app) == (201, False)
    assert bank.committed == [2]


async def test_record_on_return_at_most_once_records_500_when_app_fails_after_response() -> None:
    bank = Bank("return", on_exception="keep", takeover=False)
    app = bank.plain
    assert await send(app) == (500, False)
    assert await send(app) == (500, True)
    assert (bank.runs, bank.committed) == (1, [])


async def test_record_on_return_sends_nothing_before_the_app_returns() -> None:
    go_on = anyio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, [b"do", b"ne"], status=201)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect", "as after any complete response"
        await go_on.wait()

    store = MemoryStore()
    driver = RequestDriver(
        guard(slow, store, record="return", max_hold=5), http_scope(headers=key_header("k"))
    )
    driver.send_body(b"{}")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driver.run)
            await advance(6)  # longer than max_hold, which applies to incomplete responses
            assert driver.messages == []
            assert (await call(guard(Charges(), store), key="k")).status == 409
            go_on.set()
    assert [message.get("body") for message in driver.messages] == [None, b"do", b"ne"]
    assert (await call(guard(Charges(), store), key="k")).body == b"done"


async def test_record_on_return_frees_key_of_transient_response() -> None:
    charges = Charges(status=503)
    app = guard(charges, MemoryStore(), record="return")
    assert [(await call(app, key="k")).status for _ in range(2)] == [503, 503]
    assert charges.runs == 2


@pytest.mark.parametrize("kind", ["too long", "event stream", "too slow"])
async def test_record_on_return_streams_unbufferable_response_and_records_it_as_unreplayable(
    kind: str,
) -> None:
    bank = Bank("return", max_response_bytes=3 if kind == "too long" else 100, max_hold=0.01)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bank.runs += 1
        media_type = b"text/event-stream" if kind == "event stream" else b"text/plain"
        headers = [(b"content-type", media_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"done", "more_body": True})
        if kind == "too slow":
            await until(bank.has_recorded)
        await send({"type": "http.response.body", "body": b""})
        bank.commit()

    site = IdempotencyMiddleware(app, **bank.settings)
    assert await send(site) == (200, False)
    assert await send(site) == (409, False)
    assert [event.error for event in bank.events if isinstance(event, FailedAfterRecord)] == ["CommitFailed"]


async def test_record_on_return_refuses_body_message_after_the_last_one() -> None:
    async def twice(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"done")
        await send({"type": "http.response.body", "body": b"and more"})

    store = MemoryStore()
    with pytest.raises(RuntimeError, match="after the last one"):
        await call(guard(twice, store, record="return"), key="k")
    assert (await call(guard(Charges(), store), key="k")).status == 201


@pytest.mark.parametrize("record", ["answer", "return"])
async def test_cancellation_after_response_is_reported_only_if_the_response_was_recorded(record: str) -> None:
    bank = Bank(record)
    begun = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"done")
        begun.set()
        await anyio.sleep_forever()

    await bank.cancel_request(app, when=begun)
    results = [event.result for event in bank.events if isinstance(event, Settled)]
    failures = [event for event in bank.events if isinstance(event, FailedAfterRecord)]
    assert (results, len(failures)) == ((["kept"], 1) if record == "answer" else (["abandoned"], 0))


async def test_failure_after_unrecorded_response_emits_no_failure_event() -> None:
    """The key is free: a retry runs."""
    bank = Bank()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"later", status=503)
        raise CommitFailed

    assert await send(IdempotencyMiddleware(app, **bank.settings)) == (503, False)
    assert [type(event).__name__ for event in bank.events] == ["Claimed", "Settled"]


async def test_client_disconnect_during_stream_is_not_reported_as_app_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bank = Bank()
    flowing = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        flowing.set()
        await anyio.sleep_forever()

    await bank.cancel_request(app, when=flowing)
    assert [type(event).__name__ for event in bank.events] == ["Claimed", "Settled"]
    assert not [
        record for record in caplog.records if record.name == "idempotency" and record.levelname == "ERROR"
    ]


def test_policy_refuses_unknown_record_option() -> None:
    with pytest.raises(ValueError, match='record must be "answer" or "return"'):
        Policy(record="commit")  # type: ignore[arg-type]


# The scope that outer layers share with the application.


@pytest.mark.parametrize("keyed", [False, True])
async def test_outer_layers_see_what_the_app_wrote_into_the_scope(keyed: bool) -> None:
    """Metrics read the route and loggers the user, at the start of the response and after its end."""
    seen: list[tuple[Any, ...]] = []
    app = FastAPI()

    @app.post("/charges/{number}")
    async def charge(number: int, request: fastapi.Request) -> str:
        request.scope["user"] = "alice"
        request.scope["extensions"]["added"] = {}
        return "done"

    app.add_middleware(IdempotencyMiddleware, store=MemoryStore(), tenant=one_tenant())
    extensions: dict[str, Any] = {"http.response.pathsend": {}, "http.response.push": {}, "tls": {}}

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        def observe() -> None:
            path = scope["route"].path if "route" in scope else None
            seen.append((path, scope.get("path_params"), scope.get("user"), scope["endpoint"].__name__))

        async def send_and_observe(message: Any) -> None:
            if message["type"] == "http.response.start":
                observe()
            await send(message)

        await app(scope, receive, send_and_observe)
        observe()
        scopes.append(scope)

    scopes: list[Any] = []
    answer = await call(outer, path="/charges/7", key="k" if keyed else None, extensions=extensions)
    assert answer.status == 200
    assert seen == [("/charges/{number}", {"number": "7"}, "alice", "charge")] * 2
    assert scopes[0]["extensions"] == {
        "http.response.pathsend": {},
        "http.response.push": {},
        "tls": {},
        "added": {},
    }
    assert [name for name in scopes[0] if name.startswith("idempotency")] == []


@pytest.mark.parametrize("raises", [False, True])
async def test_hidden_extensions_are_restored_after_the_app_replaced_them(raises: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["extensions"] == {"tls": {}}
        scope["extensions"] = {**scope["extensions"], "own": {}}
        if raises:
            raise CommitFailed
        await respond(send, b"done")

    scope = http_scope(headers=key_header("k"), extensions={"http.response.pathsend": {}, "tls": {}})
    driver = RequestDriver(guard(app, MemoryStore()), scope)
    driver.send_body(b"{}")
    if raises:
        with pytest.raises(CommitFailed):
            await driver.run()
    else:
        await driver.run()
    assert scope["extensions"] == {"http.response.pathsend": {}, "tls": {}, "own": {}}


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", SERVERS)
async def test_outer_metrics_layer_finds_the_route_under_every_server(server: str) -> None:
    """Servers that offer pathsend or push are those whose extensions are hidden."""
    routes: list[Any] = []
    app = FastAPI()

    @app.post("/charges/{number}")
    async def charge(number: int) -> str:
        return "done"

    app.add_middleware(IdempotencyMiddleware, store=MemoryStore(), tenant=one_tenant())

    async def metrics(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        before = dict(scope.get("extensions") or {})
        await app(scope, receive, send)
        routes.append((scope["route"].path, dict(scope.get("extensions") or {}) == before))

    async with serve(metrics, server) as port:
        assert (await post(port, "/charges/7", key="k")).status == 200
        async with asyncio.timeout(30):
            await until(lambda: routes)  # the response arrives shortly before the application returns
    assert routes == [("/charges/{number}", True)]
