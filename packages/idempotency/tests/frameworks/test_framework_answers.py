"""A framework's answer from before a handler ran frees the key; a handler's own answer does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import fastapi
import pytest
from asgi_driver import Talk, call, http_scope, key_header
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
async def test_an_answer_of_fastapi_before_the_handler_frees_the_key_under_every_preset(
    framework: str, case: str, preset: str
) -> None:
    assert await observe(framework, case, PRESETS[preset]) == "freed"


@pytest.mark.parametrize("framework", APPS)
@pytest.mark.parametrize("preset", ["Policy()", "at_most_once", "stripe_v1"])
async def test_a_refusal_of_the_handlers_own_is_kept(framework: str, preset: str) -> None:
    assert await observe(framework, "handler", PRESETS[preset]) == "kept"


async def test_the_page_shows_what_was_seen() -> None:
    page = PAGE.read_text()
    assert page == rewritten(page, await table()), (
        "run: uv run python packages/idempotency/tests/support/framework_answers.py"
    )


def guarded(app: Any, store: MemoryStore) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(app, store=store, tenant=one_tenant(), policy=Policy.at_most_once())


async def is_kept(app: Any, store: MemoryStore, path: str = "/x") -> bool:
    """Whether one keyed request to *app* leaves a record; its handler must run."""
    talk = Talk(app, http_scope(path=path, headers=[*key_header("k"), ("content-type", "application/json")]))
    talk.give(b"{}")
    try:
        await talk.run()
    except Exception:  # the server's to log
        assert "exceptions" in repr(talk.scope.get("state", "exceptions"))
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
async def reads_a_broken_form(request: fastapi.Request) -> Response:
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
    """An endpoint whose inner application has a dependency that refuses: its exception arrives in a begun handler."""
    other = FastAPI()

    def broken() -> None:
        raise LookupError

    @other.post("/charges", dependencies=[Depends(broken)])
    async def never() -> None: ...

    await call(other)
    raise AssertionError("the other application did not raise")


@_handler
async def returns_what_does_not_fit(request: fastapi.Request) -> Response:
    raise ResponseValidationError([])


@pytest.mark.parametrize("layer", [False, True], ids=["", "base"])
@pytest.mark.parametrize("name", HANDLERS)
async def test_an_answer_of_a_handler_that_ran_is_kept_at_most_once(name: str, layer: bool) -> None:
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
async def test_a_refusal_in_the_exit_code_of_a_dependency_is_after_the_handler(scope: Any) -> None:
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


async def test_a_response_that_does_not_fit_its_model_is_after_the_handler() -> None:
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


async def test_a_middleware_that_copies_the_scope_hides_no_handler() -> None:
    """The router's marks are in the copy: their absence in ours means nothing."""
    store = MemoryStore()

    async def charge(request: Request) -> Response:
        return Response(status_code=404)

    site = Starlette(routes=[Mount("/a", app=Starlette(routes=[Route("/x", charge, methods=["POST"])]))])

    async def copying(scope: Any, receive: Any, send: Any) -> None:
        await site(dict(scope), receive, send)

    assert await is_kept(guarded(copying, store), store, "/a/x")


async def test_a_copied_scope_below_a_mount_hides_no_handler() -> None:
    store = MemoryStore()

    async def charge(request: Request) -> Response:
        return Response(status_code=404)

    inner = Starlette(routes=[Route("/x", charge, methods=["POST"])])

    async def copying(scope: Any, receive: Any, send: Any) -> None:
        await inner(dict(scope), receive, send)

    app = Starlette(routes=[Mount("/a", app=copying)])
    assert await is_kept(guarded(app, store), store, "/a/x")


async def test_a_default_application_of_a_router_is_a_handler() -> None:
    store = MemoryStore()

    async def fallback(scope: Any, receive: Any, send: Any) -> None:
        await Response(status_code=404)(scope, receive, send)

    assert await is_kept(guarded(Router(default=fallback), store), store)


async def test_an_application_called_while_its_caller_handles_an_exception_answers_for_itself() -> None:
    """Such as the exception handler of an outer application, for a dependency's refusal."""
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


async def test_a_layer_that_tries_again_inside_one_request_is_judged_by_the_last_answer() -> None:
    """A first refusal before the handler, swallowed by a layer, says nothing of the second try."""
    store, tries = MemoryStore(), []
    app = FastAPI()

    def broken() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise LookupError

    class Again:
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

    app.add_middleware(Again)
    app.add_middleware(IdempotencyMiddleware, store=store, tenant=one_tenant(), policy=Policy.at_most_once())

    @app.post("/x", dependencies=[Depends(broken)])
    async def charge() -> str:
        return "done"

    assert await is_kept(app, store)
    assert len(tries) == 2


# The same answers where routers stand in other places.


@pytest.mark.parametrize("path", ["/a/none", "/a/put", "/a/slash"])
@pytest.mark.parametrize("app", ["starlette", "router", "fastapi"])
async def test_a_router_below_a_mount_frees_the_key(app: str, path: str) -> None:
    async def never(request: Request) -> Response:
        raise AssertionError("it ran")

    store = MemoryStore()
    routes = [Route("/put", never, methods=["PUT"]), Route("/slash/", never, methods=["POST"])]
    inner: Any = {"starlette": Starlette, "router": Router}.get(app, Router)(routes=routes)
    outer: Any = FastAPI() if app == "fastapi" else Starlette()
    outer.mount("/a", inner)
    assert not await is_kept(guarded(outer, store), store, path)


@pytest.mark.parametrize("path", ["/none", "/put", "/slash"])
async def test_a_router_without_an_application_frees_the_key(path: str) -> None:
    async def never(request: Request) -> Response:
        raise AssertionError("it ran")

    store = MemoryStore()
    router = Router([Route("/put", never, methods=["PUT"]), Route("/slash/", never, methods=["POST"])])
    assert not await is_kept(guarded(router, store), store, path)


async def test_a_included_router_of_fastapi_frees_the_key() -> None:
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


async def test_plain_text_of_a_handler_is_an_answer_like_any_other() -> None:
    store = MemoryStore()

    async def charge(request: Request) -> Response:
        return PlainTextResponse("Not Found", 404)

    app = guarded(Starlette(routes=[Route("/x", charge, methods=["POST"])]), store)
    assert await is_kept(app, store)
