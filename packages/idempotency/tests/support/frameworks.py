"""
The same small application in five frameworks, each with the middleware installed as that framework's users would.

    POST /charges     201 {"charge": n}, and a cookie; n counts the effects
    POST /echo        200, the request body as it came
    POST /nothing     204
    POST /broken      the handler raises; the framework answers 500
    GET, POST /stream chunks as `Ledger.chunks` yields them
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import django_project
import fastapi
import litestar
from fastapi.responses import StreamingResponse
from litestar.datastructures import Cookie
from litestar.enums import HttpMethod
from litestar.logging import LoggingConfig
from litestar.middleware import DefineMiddleware
from litestar.response import Stream

from idempotency import IdempotencyMiddleware, one_tenant

__all__ = ["FRAMEWORKS", "Ledger", "build"]


class Ledger:
    """The application's effects, and the event that lets its stream continue."""

    def __init__(self) -> None:
        self.effects = 0
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.closed = asyncio.Event()

    def charge(self) -> dict[str, int]:
        """One effect."""
        self.effects += 1
        return {"charge": self.effects}

    async def chunks(self) -> AsyncIterator[bytes]:
        """A chunk, and another one once `go_on` is set."""
        self.begun.set()
        try:
            yield b"first"
            await self.go_on.wait()
            yield b"second"
        finally:
            self.closed.set()


def _starlette(ledger: Ledger, guard: dict[str, Any]) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def charges(request: Request) -> Response:
        response = JSONResponse(ledger.charge(), 201)
        response.set_cookie("session", "secret")
        return response

    async def echo(request: Request) -> Response:
        return Response(await request.body(), media_type="application/octet-stream")

    async def nothing(request: Request) -> Response:
        return Response(status_code=204)

    async def broken(request: Request) -> Response:
        ledger.charge()
        raise LookupError("after the effect")

    async def stream(request: Request) -> Response:
        return StreamingResponse(ledger.chunks())

    return Starlette(
        routes=[
            Route("/charges", charges, methods=["POST"]),
            Route("/echo", echo, methods=["POST"]),
            Route("/nothing", nothing, methods=["POST"]),
            Route("/broken", broken, methods=["POST"]),
            Route("/stream", stream, methods=["GET", "POST"]),
        ],
        middleware=[Middleware(IdempotencyMiddleware, **guard)],
    )


def _fastapi(ledger: Ledger, guard: dict[str, Any]) -> Any:
    app = fastapi.FastAPI()
    app.add_middleware(IdempotencyMiddleware, **guard)

    @app.post("/charges", status_code=201)
    async def charges(response: fastapi.Response) -> dict[str, int]:
        response.set_cookie("session", "secret")
        return ledger.charge()

    @app.post("/echo")
    async def echo(request: fastapi.Request) -> fastapi.Response:
        return fastapi.Response(await request.body(), media_type="application/octet-stream")

    @app.post("/nothing", status_code=204)
    async def nothing() -> None:
        return None

    @app.post("/broken")
    async def broken() -> None:
        ledger.charge()
        raise LookupError("after the effect")

    @app.api_route("/stream", methods=["GET", "POST"])
    async def stream() -> StreamingResponse:
        return StreamingResponse(ledger.chunks())

    return app


def _litestar(ledger: Ledger, guard: dict[str, Any]) -> Any:
    @litestar.post("/charges")
    async def charges() -> litestar.Response[dict[str, int]]:
        return litestar.Response(ledger.charge(), status_code=201, cookies=[Cookie("session", "secret")])

    @litestar.post("/echo", status_code=200)
    async def echo(request: litestar.Request[Any, Any, Any]) -> bytes:
        return await request.body()

    @litestar.post("/nothing", status_code=204)
    async def nothing() -> None:
        return None

    @litestar.post("/broken")
    async def broken() -> None:
        ledger.charge()
        raise LookupError("after the effect")

    @litestar.route("/stream", http_method=[HttpMethod.GET, HttpMethod.POST], status_code=200)
    async def stream() -> Stream:
        return Stream(ledger.chunks())

    return litestar.Litestar(
        [charges, echo, nothing, broken, stream],
        middleware=[DefineMiddleware(IdempotencyMiddleware, **guard)],
        logging_config=LoggingConfig(log_exceptions="never"),
        openapi_config=None,
    )


def _quart(ledger: Ledger, guard: dict[str, Any]) -> Any:
    from quart import Quart, Response, jsonify, request

    app = Quart("charges")

    @app.post("/charges")
    async def charges() -> Any:
        response = jsonify(ledger.charge())
        response.set_cookie("session", "secret")
        return response, 201

    @app.post("/echo")
    async def echo() -> Any:
        return Response(await request.get_data(), content_type="application/octet-stream")

    @app.post("/nothing")
    async def nothing() -> Any:
        return "", 204

    @app.post("/broken")
    async def broken() -> Any:
        ledger.charge()
        raise LookupError("after the effect")

    @app.route("/stream", methods=["GET", "POST"])
    async def stream() -> Any:
        return ledger.chunks()

    app.asgi_app = IdempotencyMiddleware(app.asgi_app, **guard)  # type: ignore[assignment]
    return app


def _django(ledger: Ledger, guard: dict[str, Any]) -> Any:
    django_project.configure()

    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
    from django.urls import path

    async def charges(request: HttpRequest) -> HttpResponse:
        response = JsonResponse(ledger.charge(), status=201)
        response.set_cookie("session", "secret")
        return response

    async def echo(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.body, content_type="application/octet-stream")

    async def nothing(request: HttpRequest) -> HttpResponse:
        return HttpResponse(status=204)

    async def broken(request: HttpRequest) -> HttpResponse:
        ledger.charge()
        raise LookupError("after the effect")

    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(ledger.chunks())

    views = {"charges": charges, "echo": echo, "nothing": nothing, "broken": broken, "stream": stream}
    django_project.set_urls([path(name, view) for name, view in views.items()])
    django_app = get_asgi_application()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])  # Django has no lifespan, and says so in its own way
        await django_app(scope, receive, send)

    return IdempotencyMiddleware(app, **guard)


FRAMEWORKS: dict[str, Callable[[Ledger, dict[str, Any]], Any]] = {
    "starlette": _starlette,
    "fastapi": _fastapi,
    "litestar": _litestar,
    "quart": _quart,
    "django": _django,
}


def build(name: str, store: Any, **guard: Any) -> tuple[Any, Ledger]:
    """The application in one framework, and its effects."""
    ledger = Ledger()
    return FRAMEWORKS[name](ledger, {"store": store, "tenant": one_tenant()} | guard), ledger
