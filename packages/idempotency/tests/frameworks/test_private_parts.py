"""The private names of libraries that this package relies on exist; those of redis-py have a test of their own."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
from typing import Any

import aiohttp
import django_project
import pytest
import requests
import urllib3
from aiohttp import web
from library_parts import require

_CLIENT = "idempotency.client.aiohttp"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_aiohttp_requests_share_a_timer_within_one_call_and_not_between_calls() -> None:
    """The client tells a redirect within a call from another call by the timer."""
    timers: list[Any] = []

    async def note(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        timers.append(getattr(request, "_timer", None))
        return await handler(request)

    async def redirect(_request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("/end")

    async def end(_request: web.Request) -> web.Response:
        return web.Response(text="end")

    app = web.Application()
    app.add_routes([web.post("/", redirect), web.post("/end", end)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession(middlewares=(note,)) as session:
            for _ in range(2):
                async with session.post(f"http://127.0.0.1:{port}/") as response:
                    require(
                        getattr(response, "_body", ...) is None,
                        "aiohttp",
                        "ClientResponse._body, None until it was read",
                        used_by=_CLIENT,
                    )
                    await response.read()
                    require(
                        response._body == b"end",
                        "aiohttp",
                        "ClientResponse._body, what was read",
                        used_by=_CLIENT,
                    )
    finally:
        await runner.cleanup()
    first, redirected, second, _ = timers
    require(
        first is not None and first is redirected and first is not second,
        "aiohttp",
        "ClientRequest._timer, one for all steps of a call",
        used_by=_CLIENT,
    )


def test_the_content_of_a_requests_response_is_false_until_it_is_read() -> None:
    response = requests.Response()
    response.raw = urllib3.HTTPResponse(body=io.BytesIO(b"body"), preload_content=False)
    unread = getattr(response, "_content", ...)
    require(
        unread is False and response.content == response._content,
        "requests",
        "Response._content, False until it was read",
        used_by="idempotency.client.requests",
    )


def test_a_django_response_lists_the_resources_that_close_closes() -> None:
    from django.http import HttpResponse

    django_project.configure()
    closers = getattr(HttpResponse(), "_resource_closers", None)
    require(
        isinstance(closers, list) and "_resource_closers" in inspect.getsource(HttpResponse.close),
        "django",
        "HttpResponseBase._resource_closers, which close() calls",
        used_by="idempotency.django.pending",
    )


def test_a_django_test_case_marks_its_transactions() -> None:
    from django.test import TestCase

    require(
        "_from_testcase = True" in inspect.getsource(TestCase),
        "django",
        "Atomic._from_testcase, set by TestCase",
        used_by="idempotency.stores._sql.callers",
    )


def test_a_rest_framework_request_keeps_djangos_request() -> None:
    from rest_framework import request

    require(
        "self._request = " in inspect.getsource(request.Request.__init__),
        "djangorestframework",
        "Request._request",
        used_by="idempotency.django.views",
    )


def test_a_psycopg_pool_keeps_its_workers_as_tasks() -> None:
    from psycopg_pool import AsyncConnectionPool

    async def workers() -> list[Any]:
        pool = AsyncConnectionPool("host=nowhere.invalid", min_size=0, max_size=1, open=False)
        await pool.open()
        try:
            return list(getattr(pool, "_workers", ()))
        finally:
            await pool.close()

    found = asyncio.run(workers())
    require(
        bool(found) and all(isinstance(worker, asyncio.Task) for worker in found),
        "psycopg_pool",
        "AsyncConnectionPool._workers, tasks",
        used_by="idempotency.stores.postgres.deadlines",
    )


# The functions whose names in a traceback show that a refusal came before the handler (docs/framework-answers.md).
REFUSING_FUNCTIONS = [
    ("fastapi", "fastapi.dependencies.utils", "solve_dependencies"),
    ("fastapi", "fastapi.routing", "APIRoute.handle"),
    ("fastapi", "fastapi.routing", "APIRouter.app"),
    ("starlette", "starlette.routing", "Router.app"),
    ("starlette", "starlette.routing", "Router.not_found"),
    ("starlette", "starlette.routing", "Route.handle"),
    ("starlette", "starlette.middleware.base", "BaseHTTPMiddleware.__call__"),
    ("starlette", "starlette.middleware.authentication", "AuthenticationMiddleware.__call__"),
    ("litestar", "litestar._kwargs.dependencies", "resolve_dependency"),
    ("litestar", "litestar._kwargs.extractors", "create_connection_value_extractor"),
    ("litestar", "litestar._kwargs.kwargs_model", "KwargsModel"),
    ("litestar", "litestar._signature.model", "SignatureModel"),
    ("litestar", "litestar.handlers.base", "BaseRouteHandler.authorize_connection"),
    ("django", "django.core.handlers.asgi", "ASGIHandler.handle"),
]


@pytest.mark.parametrize(("package", "module", "name"), REFUSING_FUNCTIONS, ids=str)
def test_the_functions_in_which_a_framework_refuses_requests_still_exist(
    package: str, module: str, name: str
) -> None:
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        found = None
    require(found is not None, package, f"{module}.{name}", used_by="idempotency.asgi.before_handler")
