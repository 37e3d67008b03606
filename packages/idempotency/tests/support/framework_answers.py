"""
Whether a key is kept or freed when a framework answers before the handler ran, or fails after its response.

Each framework is set up as its users do; `docs/framework-answers.md` shows the results.

    uv run python packages/idempotency/tests/support/framework_answers.py    # writes the table of that page anew
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeAlias

import fastapi
import litestar
import pydantic
from asgi_driver import RequestDriver, http_scope, key_header
from litestar.exceptions import LitestarException
from litestar.params import Body

from idempotency import IdempotencyMiddleware, Policy, StorageKey, one_tenant, successes
from idempotency.events import Event, FailedAfterRecord
from idempotency.stores.memory import MemoryStore

__all__ = ["APPS", "CASES", "PAGE", "PRESETS", "Seen", "observe", "table"]

PAGE = Path(__file__).parents[4] / "docs" / "framework-answers.md"

PRESETS: dict[str, Policy] = {
    "Policy()": Policy(),
    "at_most_once": Policy.at_most_once(),
    "stripe_v1": Policy.stripe_v1(),
    "keep=successes": Policy(keep=successes),
}

CASES: dict[str, str] = {
    "401": "401 before the handler",
    "403": "403 before the handler",
    "404": "404 of the router",
    "405": "405",
    "slash": "redirect to the path with a slash",
    "invalid": "validation",
    "own": "validation (or 404), the application's own handler for it",
    "crash": "an exception before the handler",
    "after": "exception after the answer",
    "handler": "404 of the handler",
}
"""The cases, by the last part of the path of their request."""

Seen: TypeAlias = Literal["freed", "kept", "kept, reported", "-"]


class _Denied(Exception):
    pass


class _Late(Exception):
    pass


class _Broken(Exception):
    pass


def _starlette(guard: dict[str, Any]) -> Any:
    from starlette.applications import Starlette
    from starlette.authentication import requires
    from starlette.background import BackgroundTask
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.authentication import AuthenticationMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    class Nobody:
        async def authenticate(self, conn: Any) -> None:
            if conn.url.path == "/crash":
                raise _Broken

    @requires("authenticated", status_code=401)
    async def needs_user(request: Request) -> Response:
        raise AssertionError("it ran")

    @requires("admin")
    async def needs_admin(request: Request) -> Response:
        raise AssertionError("it ran")

    async def handler(request: Request) -> Response:
        raise HTTPException(404, "no such order")

    async def late() -> None:
        raise _Late

    async def after(request: Request) -> Response:
        return Response(b"done", background=BackgroundTask(late))

    async def put(request: Request) -> Response:
        raise AssertionError("it ran")

    async def own(request: Request, error: Exception) -> Response:
        return JSONResponse({"own": str(error)}, 404)

    return Starlette(
        routes=[
            Route("/401", needs_user, methods=["POST"]),
            Route("/403", needs_admin, methods=["POST"]),
            Route("/405", put, methods=["PUT"]),
            Route("/slash/", put, methods=["POST"]),
            Route("/handler", handler, methods=["POST"]),
            Route("/after", after, methods=["POST"]),
        ],
        middleware=[
            Middleware(IdempotencyMiddleware, **guard),
            Middleware(AuthenticationMiddleware, backend=Nobody()),
        ],
        exception_handlers={404: own},
    )


class _Order(pydantic.BaseModel):
    number: int


def _fastapi(guard: dict[str, Any], *, layer: bool = False) -> Any:
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    app = fastapi.FastAPI()

    if layer:

        @app.middleware("http")
        async def pass_on(request: fastapi.Request, call_next: Any) -> Any:
            return await call_next(request)

    app.add_middleware(IdempotencyMiddleware, **guard)

    def refuse(status: int) -> Any:
        async def dependency() -> None:
            raise fastapi.HTTPException(status)

        return fastapi.Depends(dependency)

    async def late() -> Any:
        yield
        raise _Late

    def broken() -> None:
        raise _Broken

    @app.post("/401", dependencies=[refuse(401)])
    @app.post("/403", dependencies=[refuse(403)])
    @app.put("/405")
    @app.post("/slash/")
    @app.post("/crash", dependencies=[fastapi.Depends(broken)])
    async def never() -> None:
        raise AssertionError("it ran")

    @app.post("/invalid")
    async def invalid(order: _Order) -> None:
        raise AssertionError("it ran")

    sub = fastapi.FastAPI()

    @sub.exception_handler(RequestValidationError)
    async def own_handler(request: fastapi.Request, error: Any) -> JSONResponse:
        return JSONResponse({"own": len(error.errors())}, 400)

    @sub.post("/")
    async def own(order: _Order) -> None:
        raise AssertionError("it ran")

    app.mount("/own", sub)

    @app.post("/handler")
    async def handler() -> None:
        raise fastapi.HTTPException(404, "no such order")

    @app.post("/after", dependencies=[fastapi.Depends(late)])
    async def after() -> str:
        return "done"

    return app


def _litestar(guard: dict[str, Any]) -> Any:
    from litestar.background_tasks import BackgroundTask
    from litestar.exceptions import (
        NotAuthorizedException,
        NotFoundException,
        PermissionDeniedException,
        ValidationException,
    )
    from litestar.logging import LoggingConfig

    def user(connection: Any, _: Any) -> None:
        raise NotAuthorizedException

    def admin(connection: Any, _: Any) -> None:
        raise PermissionDeniedException

    async def late() -> None:
        raise _Late

    def own(request: Any, error: Exception) -> litestar.Response[Any]:
        return litestar.Response({"own": "handler"}, status_code=422)

    def broken(connection: Any, _: Any) -> None:
        raise _Broken

    @litestar.post("/401", guards=[user])
    async def needs_user() -> None:
        raise AssertionError("it ran")

    @litestar.post("/403", guards=[admin])
    async def needs_admin() -> None:
        raise AssertionError("it ran")

    @litestar.put("/405")
    async def put() -> None:
        raise AssertionError("it ran")

    @litestar.post("/invalid")
    async def invalid(data: Annotated[_Order, Body()]) -> None:
        raise AssertionError("it ran")

    @litestar.post("/own", exception_handlers={ValidationException: own})
    async def own_handler(data: Annotated[_Order, Body()]) -> None:
        raise AssertionError("it ran")

    @litestar.post("/crash", guards=[broken])
    async def crash() -> None:
        raise AssertionError("it ran")

    @litestar.post("/handler")
    async def handler() -> None:
        raise NotFoundException("no such order")

    @litestar.post("/after")
    async def after() -> litestar.Response[str]:
        return litestar.Response("done", background=BackgroundTask(late))

    app = litestar.Litestar(
        [needs_user, needs_admin, put, invalid, own_handler, crash, handler, after],
        logging_config=LoggingConfig(log_exceptions="never"),
    )
    return IdempotencyMiddleware(app, **guard)


def _quart(guard: dict[str, Any]) -> Any:
    import quart

    app = quart.Quart("answers")

    @app.before_request
    async def refuse() -> None:
        if quart.request.path in {"/401", "/403"}:
            quart.abort(int(quart.request.path[1:]))
        if quart.request.path == "/crash":
            raise _Broken

    async def never() -> Any:
        raise AssertionError("it ran")

    for path in ("/401", "/403", "/crash", "/slash/"):
        app.add_url_rule(path, path, never, methods=["POST"])
    app.add_url_rule("/405", "/405", never, methods=["PUT"])

    @app.route("/handler", methods=["POST"])
    async def handler() -> Any:
        quart.abort(404)

    @app.errorhandler(404)
    async def own(error: Any) -> Any:
        return {"own": "handler"}, 404

    app.asgi_app = IdempotencyMiddleware(app.asgi_app, **guard)  # type: ignore[assignment]
    return app


class _DjangoRefusals:
    """A middleware as Django's users write them: it answers before a view is looked for."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        from asgiref.sync import markcoroutinefunction

        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        from django.http import HttpResponse

        if request.path in {"/401", "/403"}:
            return HttpResponse(status=int(request.path[1:]))
        if request.path == "/crash":
            raise _Broken
        return await self.get_response(request)


def _django(guard: dict[str, Any]) -> Any:
    import django
    from django.conf import settings

    urls = sys.modules["framework_answers_urls"] = ModuleType("framework_answers_urls")
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="of the tests",
            LOGGING_CONFIG=None,
            ROOT_URLCONF="framework_answers_urls",
        )
        django.setup()

    from django.core.handlers.asgi import ASGIHandler
    from django.core.signals import request_finished
    from django.http import Http404, HttpRequest, HttpResponse
    from django.test import override_settings
    from django.urls import clear_url_caches, path
    from django.views.decorators.http import require_http_methods

    def never(request: HttpRequest) -> HttpResponse:
        raise AssertionError("it ran")

    async def handler(request: HttpRequest) -> HttpResponse:
        raise Http404("no such order")

    async def after(request: HttpRequest) -> HttpResponse:
        response = HttpResponse(b"done")

        def late(**_: Any) -> None:
            request_finished.disconnect(late)
            raise _Late

        request_finished.connect(late, weak=False)
        return response

    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("401", never),
        path("403", never),
        path("crash", never),
        path("405", require_http_methods(["PUT"])(never)),
        path("slash/", never),
        path("handler", handler),
        path("after", after),
    ]
    changed = override_settings(
        ROOT_URLCONF="framework_answers_urls",
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=[
            f"{_DjangoRefusals.__module__}._DjangoRefusals",
            "django.middleware.common.CommonMiddleware",
        ],
    )
    sys.modules.setdefault(_DjangoRefusals.__module__, sys.modules[__name__])
    with changed:
        clear_url_caches()
        app = ASGIHandler()

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        with changed:
            clear_url_caches()
            await app(scope, receive, send)
        clear_url_caches()

    return IdempotencyMiddleware(serve, **guard)


APPS: dict[str, tuple[Callable[[dict[str, Any]], Any], frozenset[str]]] = {
    "Starlette": (_starlette, frozenset({"invalid"})),
    "FastAPI": (_fastapi, frozenset()),
    "FastAPI, a `BaseHTTPMiddleware` inside": (lambda guard: _fastapi(guard, layer=True), frozenset()),
    "Litestar": (_litestar, frozenset({"slash"})),
    "Quart": (_quart, frozenset({"invalid", "after"})),
    "Django": (_django, frozenset({"invalid", "own"})),
}
"""How to build each application, and the cases that it does not have."""


async def observe(framework: str, case: str, policy: Policy) -> Seen:
    """Sends one request and returns what became of its key."""
    build, without = APPS[framework]
    if case in without:
        return "-"
    store, events = MemoryStore(), list[Event]()
    app = build({"store": store, "tenant": one_tenant(), "policy": policy, "hooks": [events.append]})
    path = "/own/" if (case, framework[:7]) == ("own", "FastAPI") else f"/{case}"
    headers = [*key_header("k"), ("content-type", "application/json"), ("host", "example")]
    driver = RequestDriver(app, http_scope(path=path, headers=headers))
    driver.send_body(b'{"number": "not one"}')
    try:
        answer = await driver.run()
        assert answer.status is not None, (framework, case)
        assert (answer.status < 300) == (case == "after"), (framework, case, answer)
    except* (_Late, _Broken, LitestarException):
        assert case in {"after", "crash"}
    assert len([event for event in events if type(event).__name__ == "Claimed"]) == 1, (framework, case)
    record = await store.get(StorageKey("k"))
    if record is None:
        return "freed"
    assert record.outcome is not None, "the run is over"
    return "kept, reported" if any(isinstance(event, FailedAfterRecord) for event in events) else "kept"


async def table() -> list[str]:
    """The lines of the table."""
    lines = ["| | " + " | ".join(APPS) + " |", "| --- " * (len(APPS) + 1) + "|"]
    for case, title in CASES.items():
        cells = []
        for framework in APPS:
            seen = {name: await observe(framework, case, policy) for name, policy in PRESETS.items()}
            cells.append(_cell(seen))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _cell(seen: dict[str, Seen]) -> str:
    if len(set(seen.values())) == 1:
        return next(iter(seen.values()))
    parts = []
    for value in dict.fromkeys(seen.values()):
        names = ", ".join(f"`{name}`" for name, other in seen.items() if other == value)
        parts.append(f"{value}: {names}")
    return "; ".join(parts)


BEGIN, END = "<!-- made by framework_answers.py: begin -->\n", "<!-- made by framework_answers.py: end -->\n"


def rewritten(page: str, lines: list[str]) -> str:
    """The page with this table."""
    made = BEGIN + "\n".join(lines) + "\n" + END
    return re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: made, page, flags=re.DOTALL)


if __name__ == "__main__":
    logging.disable()
    PAGE.write_text(rewritten(PAGE.read_text(), asyncio.run(table())))
