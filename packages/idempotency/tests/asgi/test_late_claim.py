"""Claims made by the application: in raw ASGI, and in frameworks without a module of their own in this package."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import django
import django_project
import litestar
import pytest
from asgi_driver import RequestDriver, call, http_scope
from litestar.middleware import DefineMiddleware
from quart import Quart
from quart import request as quart_request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from idempotency import IdempotencyMiddleware, Policy, current_claim, one_tenant
from idempotency.asgi import LateClaim, claim
from idempotency.errors import Answered, MissingTenant
from idempotency.events import Event
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class ClaimingApp:
    """A raw ASGI application that claims, and counts its effects."""

    def __init__(self, policy: Policy = Policy()) -> None:  # noqa: B008
        self.policy = policy
        self.effects = 0
        self.read_first = True
        self.bodies: list[bytes] = []
        self.claims: list[Any] = []

    async def body(self, receive: Any) -> bytes:
        chunks = []
        while True:
            message = await receive()
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(chunks)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.read_first:
            self.bodies.append(await self.body(receive))
        await claim(scope, lambda: "alice", self.policy)
        self.effects += 1
        self.claims.append(current_claim())
        if not self.read_first:
            self.bodies.append(await self.body(receive))
        await send(
            {"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"text/plain")]}
        )
        await send({"type": "http.response.body", "body": b"charge %d" % self.effects})


@pytest.mark.parametrize("read_first", [True, False])
async def test_late_claim_runs_once_whether_the_body_is_read_before_or_after_it(read_first: bool) -> None:
    app = ClaimingApp()
    app.read_first = read_first
    late = LateClaim(app, store=MemoryStore())
    first, again = await call(late, key="k", body=b"5 EUR"), await call(late, key="k", body=b"5 EUR")
    assert (first.status, first.body, first.replayed) == (201, b"charge 1", False)
    assert (again.status, again.body, again.replayed) == (201, b"charge 1", True)
    assert app.bodies[0] == b"5 EUR"
    assert (await call(late, key="k", body=b"6 EUR")).status == 422
    assert app.effects == 1
    assert app.claims[0].attempt == 1
    assert current_claim() is None


async def test_late_claim_ignores_how_the_body_is_split_into_messages() -> None:
    app = ClaimingApp()
    late = LateClaim(app, store=MemoryStore())

    async def send(*chunks: bytes) -> Any:
        driver = RequestDriver(late, http_scope(headers=[("idempotency-key", "k")]))
        for chunk in chunks[:-1]:
            driver.send_body(chunk, more_body=True)
        driver.send_body(chunks[-1])
        return await driver.run()

    assert [(await send(b"5", b" EUR")).status, (await send(b"5 E", b"UR")).replayed] == [201, True]
    assert (await send(b"5", b" USD")).status == 422


@pytest.mark.parametrize("read_first", [True, False])
async def test_late_claim_refuses_a_body_over_the_limit(read_first: bool) -> None:
    app = ClaimingApp(Policy(max_request_bytes=4))
    app.read_first = read_first
    late = LateClaim(app, store=(store := MemoryStore()))
    assert (await call(late, key="k", body=b"5 EUR")).status == 413
    assert (app.effects, (await store.scan()).records) == (0, ())


async def test_client_disconnect_before_complete_body_runs_and_claims_nothing() -> None:
    app = ClaimingApp()
    app.read_first = False
    late = LateClaim(app, store=(store := MemoryStore()))
    driver = RequestDriver(late, http_scope(headers=[("idempotency-key", "k"), ("content-length", "100")]))
    driver.send_body(b"half", more_body=True)
    driver.disconnect()
    await driver.run()
    assert (app.effects, (await store.scan()).records) == (0, ())


async def test_line_feed_in_the_path_does_not_begin_another_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[Event] = []
    charge = ClaimingApp()

    async def fail_after_charge(scope: Any, receive: Any, send: Any) -> None:
        await charge(scope, receive, send)
        raise LookupError

    late = LateClaim(fail_after_charge, store=MemoryStore(), hooks=[events.append])
    with pytest.raises(LookupError):
        await call(late, path="/pay\nERROR forged", key="k")
    assert {event.operation for event in events} == {r"POST /pay\nERROR forged"}
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith(r"POST /pay\nERROR forged raised LookupError")


async def test_request_without_key_runs_unclaimed_unless_the_key_is_required() -> None:
    app = ClaimingApp()
    late = LateClaim(app, store=MemoryStore())
    assert [(await call(late)).body for _ in range(2)] == [b"charge 1", b"charge 2"]
    assert app.claims == [None, None]
    required = ClaimingApp(Policy(required=True))
    assert (await call(LateClaim(required, store=MemoryStore()))).status == 400
    assert required.effects == 0


async def test_app_that_never_claims_records_nothing() -> None:
    app = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("ok"), methods=["POST"])])
    store = MemoryStore()
    late = LateClaim(app, store=store)
    assert [(await call(late, key="k")).replayed for _ in range(2)] == [False, False]
    assert (await store.scan()).records == ()


async def test_claim_without_the_middleware_raises_before_the_effect() -> None:
    app = ClaimingApp()
    with pytest.raises(RuntimeError, match="LateClaim"):
        await call(app, key="k")
    assert app.effects == 0


async def test_second_claim_and_claim_after_response_start_are_errors() -> None:
    async def claim_twice(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "alice")
        await claim(scope, "alice")

    async def claim_late(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await claim(scope, "alice")

    for app in (claim_twice, claim_late):
        with pytest.raises(RuntimeError, match="claim a request once"):
            await call(LateClaim(app, store=MemoryStore()), key="k")


async def test_replay_is_sent_even_if_the_handler_catches_answered() -> None:
    effects: list[str] = []

    async def catch_answered(scope: Any, receive: Any, send: Any) -> None:
        try:
            await claim(scope, "alice")
            effects.append("effect")
        except Answered:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"mine"})

    late = LateClaim(catch_answered, store=MemoryStore())
    first, again = await call(late, key="k"), await call(late, key="k")
    assert (first.body, again.body, again.replayed, effects) == (b"mine", b"mine", True, ["effect"])
    assert (await call(late, key="k", body=b"other")).status == 422


async def test_principal_that_raises_missing_tenant_gives_a_400_problem() -> None:
    def principal() -> str:
        raise MissingTenant("log in")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, principal)

    assert (await call(LateClaim(app, store=MemoryStore()), key="k")).status == 400


async def test_exception_frees_a_late_claim_and_cancellation_does_not() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "alice")
        raise LookupError

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "alice")
        inside.set()
        await asyncio.Event().wait()

    store, inside = MemoryStore(), asyncio.Event()
    with pytest.raises(LookupError):
        await call(LateClaim(broken, store=store), key="k")
    assert (await store.scan()).records == ()
    task = asyncio.ensure_future(call(LateClaim(stuck, store=store), key="k"))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len((await store.scan()).records) == 1


async def test_late_claim_joins_the_run_of_an_outer_middleware_with_the_same_key() -> None:
    app, store = ClaimingApp(), MemoryStore()

    async def claim_for_one_tenant(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "")
        app.effects += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    both = IdempotencyMiddleware(
        LateClaim(claim_for_one_tenant, store=store), store=store, tenant=one_tenant()
    )
    assert [(await call(both, key="k")).replayed for _ in range(2)] == [False, True]
    assert app.effects == 1


async def test_scope_is_restored_after_the_request() -> None:
    scope = http_scope(headers=[("idempotency-key", "k")])
    scope["extensions"] = extensions = {"http.response.pathsend": {}, "tls": {}}
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["extensions"]))
        await claim(scope, "alice")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    driver = RequestDriver(LateClaim(app, store=MemoryStore()), scope)
    driver.send_body(b"")
    await driver.run()
    assert seen == [{"tls": {}}]
    assert scope["extensions"] is extensions
    assert [name for name in scope if name.startswith("idempotency.")] == []


def test_late_claim_refuses_a_store_of_the_wrong_kind() -> None:
    for wrong in (SyncMemoryStore(), MemoryStore, object()):
        with pytest.raises(TypeError, match="store must be a Store"):
            LateClaim(ClaimingApp(), store=wrong)  # type: ignore[arg-type]


# In frameworks.


class Ledger:
    effects = 0

    def charge(self) -> dict[str, int]:
        self.effects += 1
        return {"charge": self.effects}


def starlette_app(ledger: Ledger, store: Any) -> Any:
    async def charge(request: Request) -> Response:
        if "authorization" not in request.headers:
            return Response(status_code=401)
        await request.json()
        await claim(request.scope, request.headers["authorization"])
        return JSONResponse(ledger.charge(), 201)

    routes = [Mount("/v1", routes=[Route("/charges", charge, methods=["POST"])])]
    return Starlette(routes=routes, middleware=[Middleware(LateClaim, store=store)])


def litestar_app(ledger: Ledger, store: Any) -> Any:
    app = _litestar(ledger, [])
    return LateClaim(app, store=store)  # type: ignore[arg-type]


def litestar_middleware(ledger: Ledger, store: Any) -> Any:
    return _litestar(ledger, [DefineMiddleware(LateClaim, store=store)])


def _litestar(ledger: Ledger, middleware: Any) -> Any:
    @litestar.post("/v1/charges")
    async def charge(request: litestar.Request[Any, Any, Any]) -> dict[str, int]:
        if "authorization" not in request.headers:
            raise litestar.exceptions.NotAuthorizedException
        await claim(request.scope, request.headers["authorization"])  # type: ignore[arg-type]
        return ledger.charge()

    return litestar.Litestar([charge], middleware=middleware, logging_config=None, openapi_config=None)


def quart_app(ledger: Ledger, store: Any) -> Any:
    app = Quart("charges")

    @app.post("/v1/charges")
    async def charge() -> Any:
        if "Authorization" not in quart_request.headers:
            return "", 401
        await quart_request.get_json()
        await claim(quart_request.scope, quart_request.headers["Authorization"])  # type: ignore[arg-type]
        return ledger.charge(), 201

    app.asgi_app = LateClaim(app.asgi_app, store=store)  # type: ignore[assignment, arg-type]
    return app


def django_app(ledger: Ledger, store: Any) -> Any:
    django_project.configure()
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse, JsonResponse
    from django.urls import path

    async def charge(request: Any) -> Any:
        if "Authorization" not in request.headers:
            return HttpResponse(status=401)
        await claim(request.scope, request.headers["Authorization"])
        return JsonResponse(ledger.charge(), status=201)

    django_project.set_urls([path("v1/charges", charge)])
    return LateClaim(get_asgi_application(), store=store)


@pytest.mark.parametrize("build", [starlette_app, litestar_app, litestar_middleware, quart_app, django_app])
async def test_one_claim_call_protects_a_handler_in_every_framework(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, store = Ledger(), MemoryStore()
    app = build(ledger, store)

    async def send(user: str | None, body: bytes = b'{"amount": 5}') -> Any:
        headers = [("content-type", "application/json")] + ([("authorization", user)] if user else [])
        return await call(app, path="/v1/charges", key="k", body=body, headers=headers)

    caplog.set_level(logging.ERROR)
    assert (await send(None)).status == 401
    assert (await store.scan()).records == ()
    first, again, other = await send("alice"), await send("alice"), await send("bob")
    assert (first.status, again.status, again.replayed, other.replayed) == (201, 201, True, False)
    assert (again.body, ledger.effects) == (first.body, 2)
    assert (await send("alice", b'{"amount": 6}')).status == 422
    if build is not django_app or django.VERSION >= (5,):  # 4.2 logs the exception that ends the view
        assert caplog.records == []


# CORS: an inner layer adds headers for the origin of each request, which a replay and a refusal must have too.


def _cors_apps(policy: Policy) -> dict[str, Any]:
    from litestar.config.cors import CORSConfig
    from starlette.middleware.cors import CORSMiddleware

    origins = ["https://a", "https://b"]

    async def order(request: Request) -> Response:
        await claim(request.scope, "alice", policy)
        return JSONResponse({}, 201)

    @litestar.post("/charges")
    async def litestar_order(request: litestar.Request[Any, Any, Any]) -> None:
        await claim(request.scope, "alice", policy)

    quart_app = Quart("shop")

    @quart_app.post("/charges")
    async def quart_order() -> tuple[str, int]:
        await claim(quart_request.scope, "alice", policy)
        return "", 201

    @quart_app.after_request
    async def allow(response: Any) -> Any:
        response.headers["Access-Control-Allow-Origin"] = quart_request.headers["Origin"]
        response.headers["Vary"] = "Origin"
        return response

    cors = [Middleware(CORSMiddleware, allow_origins=origins)]
    return {
        "starlette": Starlette(routes=[Route("/charges", order, methods=["POST"])], middleware=cors),
        "litestar": litestar.Litestar(
            [litestar_order], cors_config=CORSConfig(origins), logging_config=None, openapi_config=None
        ),
        "quart": quart_app,
    }


@pytest.mark.parametrize("framework", ["starlette", "litestar", "quart"])
async def test_replays_and_refusals_have_the_cors_headers_of_the_requests_origin(framework: str) -> None:
    late = LateClaim(_cors_apps(Policy())[framework], store=MemoryStore())

    async def post(origin: str, body: bytes = b"{}") -> Any:
        return await call(late, key="k", body=body, headers=[("origin", origin)])

    first, again, refused = await post("https://a"), await post("https://b"), await post("https://b", b"[]")
    assert (first.status, again.status, again.replayed, refused.status) == (201, 201, True, 422)
    for answer, origin in ((first, b"https://a"), (again, b"https://b"), (refused, b"https://b")):
        assert answer.values("access-control-allow-origin") == [origin]
        assert answer.values("vary") == [b"Origin"]
        assert answer.complete


@pytest.mark.parametrize("ends", ["raising", "returning", "answering"])
async def test_refusal_of_a_cross_origin_request_is_sent_however_the_app_ends(ends: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await claim(scope, "alice", Policy(required=True))
        except Answered:
            if ends == "raising":
                raise
            if ends == "answering":
                await send({"type": "http.response.start", "status": 500})
                await send({"type": "http.response.body", "body": b"x"})

    answer = await call(LateClaim(app, store=MemoryStore()), headers=[("origin", "https://a")])
    assert (answer.status, answer.complete, answer.values("content-type")) == (
        400,
        True,
        [b"application/problem+json"],
    )


async def test_refusal_of_a_cross_origin_request_is_sent_if_the_app_raises_another_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await claim(scope, "alice", Policy(required=True))
        except Answered:
            raise ZeroDivisionError from None

    served: list[Any] = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            await LateClaim(app, store=MemoryStore())(scope, receive, send)
        served.append(scope)

    answer = await call(server, headers=[("origin", "https://a")])
    assert (answer.status, answer.complete, len(served)) == (400, True, 1)
