"""A framework's refusal before the handler frees the key; a handler's own answer is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import fastapi
import pytest
from asgi_driver import RequestDriver, call, http_scope, key_header
from fastapi import Depends, FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.responses import JSONResponse
from framework_answers import APPS, CASES, PAGE, PRESETS, observe, rewritten, table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, Router

from idempotency import IdempotencyMiddleware, Policy, StorageKey, one_tenant
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

BEFORE = [case for case in CASES if case not in {"after", "handler"}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("framework", [name for name in APPS if name.startswith("FastAPI")])
@pytest.mark.parametrize("case", BEFORE)
async def test_a_fastapi_refusal_before_the_handler_frees_the_key_under_every_preset(
    framework: str, case: str, preset: str
) -> None:
    assert await observe(framework, case, PRESETS[preset]) == "freed"


@pytest.mark.parametrize("framework", APPS)
@pytest.mark.parametrize("preset", ["Policy()", "at_most_once", "stripe_v1"])
async def test_a_refusal_by_the_handler_is_kept(framework: str, preset: str) -> None:
    assert await observe(framework, "handler", PRESETS[preset]) == "kept"


async def test_the_table_in_the_docs_matches_the_observed_behaviour() -> None:
    page = PAGE.read_text()
    assert page == rewritten(page, await table()), (
        "run: uv run python packages/idempotency/tests/support/framework_answers.py"
    )


def guarded(app: Any, store: MemoryStore) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(app, store=store, tenant=one_tenant(), policy=Policy.at_most_once())


async def is_kept(app: Any, store: MemoryStore, path: str = "/x") -> bool:
    """Whether one keyed request to *app* leaves a record; its handler must run."""
    driver = RequestDriver(
        app, http_scope(path=path, headers=[*key_header("k"), ("content-type", "application/json")])
    )
    driver.send_body(b"{}")
    with suppress(Exception):  # which a server would log; the record is what these tests check
        await driver.run()
    return await store.get(StorageKey("k")) is not None


HANDLERS: dict[str, Any] = {}


def _handler(function: Any) -> Any:
    HANDLERS[function.__name__] = function
    return function


@_handler
async def answers_405(request: fastapi.Request) -> Response:
    return Response(status_code=405)


@_handler
async def redirects(request: fastapi.Request) -> Response:
    return RedirectResponse("/x/")


@_handler
async def raises_404(request: fastapi.Request) -> Response:
    raise HTTPException(404)


@_handler
async def raises_400_without_a_cause(request: fastapi.Request) -> Response:
    raise HTTPException(400) from None


@_handler
async def raises_a_validation_error(request: fastapi.Request) -> Response:
    raise RequestValidationError([])


@_handler
def raises_in_a_thread(request: fastapi.Request) -> Response:
    raise HTTPException(403)


@_handler
async def answers_while_it_handles_an_exception(request: fastapi.Request) -> Response:
    try:
        raise HTTPException(401)
    except HTTPException:
        return Response(status_code=404)


@_handler
async def calls_another_application(request: fastapi.Request) -> Response:
    """Calls an application whose dependency raises: that exception passes through this handler, which has begun."""
    other = FastAPI()

    def broken() -> None:
        raise LookupError

    @other.post("/charges", dependencies=[Depends(broken)])
    async def never() -> None: ...

    await call(other)
    raise AssertionError("the other application did not raise")


@_handler
async def raises_a_response_validation_error(request: fastapi.Request) -> Response:
    raise ResponseValidationError([])


@pytest.mark.parametrize("layer", [False, True], ids=["", "base"])
@pytest.mark.parametrize("name", HANDLERS)
async def test_at_most_once_keeps_the_answer_of_a_handler_that_ran(name: str, layer: bool) -> None:
    store = MemoryStore()
    app = FastAPI()
    if layer:

        @app.middleware("http")
        async def pass_on(request: Request, call_next: Any) -> Any:
            return await call_next(request)

    app.add_middleware(IdempotencyMiddleware, store=store, tenant=one_tenant(), policy=Policy.at_most_once())
    app.post("/x")(HANDLERS[name])
    assert await is_kept(app, store)


@pytest.mark.parametrize("scope", ["function", "request"])
async def test_an_http_exception_in_the_exit_code_of_a_dependency_is_kept(scope: Any) -> None:
    store, ran = MemoryStore(), []
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, store=store, tenant=one_tenant(), policy=Policy.at_most_once())

    async def late() -> AsyncIterator[None]:
        yield
        raise HTTPException(409)

    @app.post("/x", dependencies=[Depends(late, scope=scope)])
    async def charge() -> str:
        ran.append(1)
        return "done"

    assert await is_kept(app, store)
    assert ran == [1]


async def test_the_answer_to_a_response_that_does_not_fit_its_model_is_kept() -> None:
    store = MemoryStore()
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, store=store, tenant=one_tenant(), policy=Policy.at_most_once())

    @app.exception_handler(ResponseValidationError)
    async def own(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({}, 404)

    @app.post("/x", response_model=int)
    async def charge() -> Any:
        return "no number"

    assert await is_kept(app, store)


async def test_a_handlers_answer_is_kept_below_a_middleware_that_copies_the_scope() -> None:
    """The router marks the copy only; an unmarked scope of ours does not mean that no handler ran."""
    store = MemoryStore()

    async def charge(request: Request) -> Response:
        return Response(status_code=404)

    site = Starlette(routes=[Mount("/a", app=Starlette(routes=[Route("/x", charge, methods=["POST"])]))])

    async def copying(scope: Any, receive: Any, send: Any) -> None:
        await site(dict(scope), receive, send)

    assert await is_kept(guarded(copying, store), store, "/a/x")


async def test_a_handlers_answer_is_kept_where_the_scope_is_copied_below_a_mount() -> None:
    store = MemoryStore()

    async def charge(request: Request) -> Response:
        return Response(status_code=404)

    inner = Starlette(routes=[Route("/x", charge, methods=["POST"])])

    async def copying(scope: Any, receive: Any, send: Any) -> None:
        await inner(dict(scope), receive, send)

    app = Starlette(routes=[Mount("/a", app=copying)])
    assert await is_kept(guarded(app, store), store, "/a/x")


async def test_the_answer_of_a_routers_default_application_is_kept() -> None:
    store = MemoryStore()

    async def fallback(scope: Any, receive: Any, send: Any) -> None:
        await Response(status_code=404)(scope, receive, send)

    assert await is_kept(guarded(Router(default=fallback), store), store)


async def test_the_answer_of_an_application_called_in_an_exception_handler_is_kept() -> None:
    """The exception that the caller handles is a dependency's, and says nothing of the called application."""
    store = MemoryStore()

    async def charge(request: Request) -> Response:
        return Response(b"done")

    inner = guarded(Starlette(routes=[Route("/x", charge, methods=["POST"])]), store)
    outer = FastAPI()

    def broken() -> None:
        raise LookupError

    @outer.exception_handler(LookupError)
    async def elsewhere(request: Request, error: Exception) -> Response:
        await is_kept(inner, store)
        return Response()

    @outer.post("/charges", dependencies=[Depends(broken)])
    async def never() -> None: ...

    assert (await call(outer)).status == 200
    assert await store.get(StorageKey("k")) is not None


async def test_the_last_answer_decides_where_a_middleware_retries_within_one_request() -> None:
    """The first try was refused before the handler, but the middleware caught that and tried again."""
    store, tries = MemoryStore(), []
    app = FastAPI()

    def broken() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise LookupError

    class Retrying:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await self.app(scope, receive, send)
            except LookupError:
                await self.app(scope, receive, send)

    @app.middleware("http")
    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(Retrying)
    app.add_middleware(IdempotencyMiddleware, store=store, tenant=one_tenant(), policy=Policy.at_most_once())

    @app.post("/x", dependencies=[Depends(broken)])
    async def charge() -> str:
        return "done"

    assert await is_kept(app, store)
    assert len(tries) == 2


# The same refusals from routers in other places.


@pytest.mark.parametrize("path", ["/a/none", "/a/put", "/a/slash"])
@pytest.mark.parametrize("app", ["starlette", "router", "fastapi"])
async def test_a_refusal_of_a_router_below_a_mount_frees_the_key(app: str, path: str) -> None:
    async def never(request: Request) -> Response:
        raise AssertionError("it ran")

    store = MemoryStore()
    routes = [Route("/put", never, methods=["PUT"]), Route("/slash/", never, methods=["POST"])]
    inner: Any = {"starlette": Starlette, "router": Router}.get(app, Router)(routes=routes)
    outer: Any = FastAPI() if app == "fastapi" else Starlette()
    outer.mount("/a", inner)
    assert not await is_kept(guarded(outer, store), store, path)


@pytest.mark.parametrize("path", ["/none", "/put", "/slash"])
async def test_a_refusal_of_a_router_without_an_application_frees_the_key(path: str) -> None:
    async def never(request: Request) -> Response:
        raise AssertionError("it ran")

    store = MemoryStore()
    router = Router([Route("/put", never, methods=["PUT"]), Route("/slash/", never, methods=["POST"])])
    assert not await is_kept(guarded(router, store), store, path)


async def test_a_refusal_of_an_included_fastapi_router_frees_the_key() -> None:
    store = MemoryStore()
    router = fastapi.APIRouter(prefix="/v1")

    def refuse() -> None:
        raise HTTPException(401)

    @router.post("/x", dependencies=[Depends(refuse)])
    async def never() -> None: ...

    @router.put("/put")
    async def put() -> None: ...

    app = FastAPI()
    app.include_router(router)
    site = guarded(app, store)
    for path in ("/v1/x", "/v1/put", "/v1/none"):
        assert not await is_kept(site, store, path)


async def test_a_corrected_request_may_use_its_key_again() -> None:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, store=MemoryStore(), tenant=one_tenant())

    @app.post("/charges")
    async def charge(number: int) -> int:
        return number

    headers = [("content-type", "application/json")]
    first = await call(app, key="k", headers=headers, query=b"number=one")
    second = await call(app, key="k", headers=headers, query=b"number=1")
    assert (first.status, second.status, second.body) == (422, 200, b"1")


async def test_a_plain_text_404_of_a_handler_is_kept() -> None:
    store = MemoryStore()

    async def charge(request: Request) -> Response:
        return PlainTextResponse("Not Found", 404)

    app = guarded(Starlette(routes=[Route("/x", charge, methods=["POST"])]), store)
    assert await is_kept(app, store)
