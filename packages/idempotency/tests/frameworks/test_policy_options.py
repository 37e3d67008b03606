# ruff: noqa: E402 (Django must be configured first)
"""Policy options that every middleware treats alike: key headers, ignored query parameters, rendered refusals."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import django_project
import httpx
import pytest

django_project.configure()

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI
from flask import Flask, jsonify
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from idempotency import IdempotencyMiddleware, Policy, Problem, StoreUnavailable, one_tenant
from idempotency.asgi import LateClaim, claim
from idempotency.django import protect as protect_view
from idempotency.fastapi import Idempotent, install
from idempotency.flask import Idempotency
from idempotency.openapi import add_idempotency
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.wsgi import IdempotencyMiddleware as WSGIMiddleware
from idempotency.wsgi import LateClaim as WSGILateClaim
from idempotency.wsgi import claim as wsgi_claim

pytestmark = pytest.mark.anyio

FRAMEWORKS = [
    "asgi",
    "asgi-late",
    "fastapi",
    "wsgi",
    "wsgi-late",
    "flask",
    "django-wsgi",
    "django-asgi",
    "django-protect",
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class AsyncStore(MemoryStore):
    """A store that is unavailable while its route says so."""

    def __init__(self, route: ProtectedRoute) -> None:
        super().__init__()
        self.route = route

    async def acquire(self, *args: Any, **options: Any) -> Any:
        if self.route.store_is_down:
            raise StoreUnavailable("down")
        return await super().acquire(*args, **options)


class SyncStore(SyncMemoryStore):
    """The same without an event loop."""

    def __init__(self, route: ProtectedRoute) -> None:
        super().__init__()
        self.route = route

    def acquire(self, *args: Any, **options: Any) -> Any:
        if self.route.store_is_down:
            raise StoreUnavailable("down")
        return super().acquire(*args, **options)


class ProtectedRoute:
    """A route in one framework, protected under a policy, that counts its runs."""

    def __init__(self, framework: str, policy: Policy, known: tuple[str, ...] | None = None) -> None:
        self.runs = 0
        self.store_is_down = False
        self._stack = ExitStack()
        self.is_async = framework in {"asgi", "asgi-late", "fastapi", "django-asgi"}
        names = policy.key_headers if known is None else known
        make = getattr(self, "_" + framework.replace("-", "_"))
        self.app: Any = make(policy, names)

    def run(self) -> dict[str, int]:
        self.runs += 1
        return {"run": self.runs}

    def _starlette(self, *claims: Any) -> Starlette:
        async def endpoint(request: Any) -> JSONResponse:
            for one in claims:
                await claim(request.scope, "alice", one)
            return JSONResponse(self.run(), 201)

        return Starlette(routes=[Route("/", endpoint, methods=["POST"])])

    def _asgi(self, policy: Policy, names: Any) -> Any:
        return IdempotencyMiddleware(
            self._starlette(), store=AsyncStore(self), tenant=one_tenant(), policy=policy
        )

    def _asgi_late(self, policy: Policy, names: Any) -> Any:
        return LateClaim(self._starlette(policy), store=AsyncStore(self), key_headers=names)

    def _fastapi(self, policy: Policy, names: Any) -> Any:
        app = FastAPI()
        install(app, store=AsyncStore(self))

        @app.post("/", status_code=201)
        @Idempotent(principal=lambda: "alice").protect(policy=policy)
        async def endpoint() -> dict[str, int]:
            return self.run()

        return app

    def _flask_app(self) -> tuple[Flask, Any]:
        def view() -> Any:
            return jsonify(self.run()), 201

        return Flask("app"), view

    def _flask(self, policy: Policy, names: Any) -> Any:
        app, view = self._flask_app()
        once = Idempotency(app, store=SyncStore(self), principal=lambda: "alice")
        app.post("/")(once.protect(policy=policy)(view))
        return app

    def _wsgi(self, policy: Policy, names: Any) -> Any:
        app, view = self._flask_app()
        app.post("/")(view)
        return WSGIMiddleware(app, store=SyncStore(self), tenant=lambda _: "", policy=policy)

    def _wsgi_late(self, policy: Policy, names: Any) -> Any:
        def app(environ: Any, start_response: Any) -> Any:
            wsgi_claim(environ, "alice", policy)
            body = json.dumps(self.run()).encode()
            start_response("201 Created", [("Content-Length", str(len(body)))])
            return [body]

        return WSGILateClaim(app, store=SyncStore(self), key_headers=names)

    def _django(self, store: Any, given: Policy, **settings: Any) -> None:
        def view(request: HttpRequest) -> JsonResponse:
            return JsonResponse(self.run(), status=201)

        django_project.set_urls(
            [path("", protect_view(policy=given)(view) if "KEY_HEADERS" in settings else view)]
        )
        self._stack.enter_context(
            override_settings(
                MIDDLEWARE=["idempotency.django.IdempotencyMiddleware"],
                IDEMPOTENCY={"STORE": store, "PRINCIPAL": lambda _: "alice", **settings},
            )
        )

    def _django_wsgi(self, policy: Policy, names: Any) -> Any:
        self._django(SyncStore(self), policy, POLICY=policy)
        return WSGIHandler()

    def _django_protect(self, policy: Policy, names: Any) -> Any:
        self._django(SyncStore(self), policy, KEY_HEADERS=names)
        return WSGIHandler()

    def _django_asgi(self, policy: Policy, names: Any) -> Any:
        self._django(AsyncStore(self), policy, POLICY=policy)
        return ASGIHandler()

    async def post(self, url: str = "/", *, body: bytes = b"{}", **headers: str) -> httpx.Response:
        sent = {"content": body, "headers": {name.replace("_", "-"): text for name, text in headers.items()}}
        if self.is_async:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                return await client.post(url, **sent)  # type: ignore[arg-type]
        with httpx.Client(transport=httpx.WSGITransport(self.app), base_url="http://shop") as client:
            return client.post(url, **sent)  # type: ignore[arg-type]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(params=FRAMEWORKS)
def open_route(request: pytest.FixtureRequest) -> Iterator[Any]:
    routes: list[ProtectedRoute] = []

    def open_one(policy: Policy, known: tuple[str, ...] | None = None) -> ProtectedRoute:
        routes.append(ProtectedRoute(request.param, policy, known))
        return routes[-1]

    open_one.framework = request.param  # type: ignore[attr-defined]
    yield open_one
    for route in routes:
        route.close()


class TestKeyHeaders:
    async def test_a_policy_may_name_another_header_for_the_key(self, open_route: Any) -> None:
        route = open_route(Policy(key_headers=("X-GitHub-Delivery",)))
        first = await route.post(x_github_delivery="72d3162e-cc78")
        again = await route.post(x_github_delivery="72d3162e-cc78")
        assert (first.status_code, again.json()) == (201, first.json())
        assert again.headers["idempotency-replayed"] == "true"
        assert route.runs == 1
        await route.post(idempotency_key="72d3162e-cc78")
        assert route.runs == 2, "Idempotency-Key is no key header of this policy"
        other = await route.post(x_github_delivery="72d3162e-cc78", body=b'{"other": 1}')
        assert other.status_code == 422

    async def test_the_same_key_in_any_of_several_headers_is_one_operation(self, open_route: Any) -> None:
        route = open_route(Policy(key_headers=("webhook-id", "svix-id", "Idempotency-Key")))
        await route.post(svix_id="msg_1")
        await route.post(webhook_id="msg_1")
        await route.post(webhook_id="msg_1", svix_id="msg_1")
        assert route.runs == 1

    async def test_two_key_headers_with_different_keys_are_refused(self, open_route: Any) -> None:
        route = open_route(Policy(key_headers=("webhook-id", "svix-id")))
        answer = await route.post(webhook_id="msg_1", svix_id="msg_2")
        assert (answer.status_code, route.runs) == (400, 0)
        assert "webhook-id and svix-id hold two different keys" in answer.json()["detail"]

    async def test_the_error_for_a_missing_key_names_the_headers_of_the_policy(self, open_route: Any) -> None:
        route = open_route(Policy(key_headers=("X-Delivery", "X-Event"), required=True))
        missing, invalid = await route.post(), await route.post(x_delivery="a b")
        assert (missing.status_code, invalid.status_code, route.runs) == (400, 400, 0)
        assert "X-Delivery or X-Event" in missing.json()["detail"]

    @pytest.mark.parametrize("open_route", ["asgi-late", "wsgi-late", "django-protect"], indirect=True)
    async def test_a_layer_without_the_policys_key_headers_raises_and_runs_nothing(
        self, open_route: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        route = open_route(Policy(key_headers=("X-Delivery",)), known=("Idempotency-Key",))
        if open_route.framework == "django-protect":  # where Django turns the error into a 500
            with caplog.at_level(logging.ERROR, "django.request"):
                assert (await route.post(x_delivery="1")).status_code == 500
            assert "pass key_headers=" in caplog.text
        else:
            with pytest.raises(RuntimeError, match="pass key_headers="):
                await route.post(x_delivery="1")
        assert route.runs == 0

    @pytest.mark.parametrize("wrong", [(), ("two words",), "Idempotency-Key", ["X-Key"], (b"x-key",)])
    def test_invalid_header_names_are_refused(self, wrong: Any) -> None:
        with pytest.raises(ValueError, match="key_headers must be a tuple"):
            Policy(key_headers=wrong)


class TestIgnoredQuery:
    async def test_ignored_query_parameters_are_not_part_of_the_fingerprint(self, open_route: Any) -> None:
        route = open_route(Policy(ignored_query=frozenset({"sent_at", "signature"})))
        first = await route.post("/?order=1&sent_at=10&signature=a", idempotency_key="k")
        again = await route.post("/?sent%5Fat=11&order=1&signature=b", idempotency_key="k")
        assert again.json() == first.json()
        assert route.runs == 1
        other = await route.post("/?order=2&sent_at=10&signature=a", idempotency_key="k")
        assert (other.status_code, route.runs) == (422, 1)

    async def test_every_query_parameter_is_part_of_the_fingerprint_by_default(self, open_route: Any) -> None:
        route = open_route(Policy())
        await route.post("/?sent_at=10", idempotency_key="k")
        assert (await route.post("/?sent_at=11", idempotency_key="k")).status_code == 422


def envelope(problem: Problem) -> tuple[str, bytes]:
    """The error envelope of an existing API."""
    return "application/json", json.dumps({"error": {"code": problem.slug, "text": problem.detail}}).encode()


class TestRender:
    async def test_render_sets_the_body_and_media_type_of_a_refusal(self, open_route: Any) -> None:
        route = open_route(Policy(render=envelope, documentation_url="https://docs.example/errors"))
        await route.post(idempotency_key="k")
        answer = await route.post(idempotency_key="k", body=b'{"other": 1}')
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "key-reused")
        assert answer.headers["content-type"] == "application/json"
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["link"] == '<https://docs.example/errors#key-reused>; rel="describedby"'

    async def test_render_keeps_the_retry_after_header(self, open_route: Any) -> None:
        route = open_route(Policy(render=envelope))

        route.store_is_down = True
        answer = await route.post(idempotency_key="k")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store-unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert route.runs == 0

    @pytest.mark.parametrize(
        "wrong",
        [lambda _: 1 / 0, lambda _: ("text/plain", "no bytes"), lambda _: None],
        ids=["raises", "text", "none"],
    )
    async def test_a_render_function_that_fails_is_logged_and_the_problem_document_is_sent(
        self, open_route: Any, wrong: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        route = open_route(Policy(render=wrong, required=True))
        with caplog.at_level(logging.ERROR, "idempotency"):
            answer = await route.post()
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert "Policy.render raised" in caplog.text
        assert route.runs == 0


class TestOpenAPI:
    def test_openapi_lists_the_key_headers_of_a_routes_policy(self) -> None:
        app = FastAPI()
        install(app, store=MemoryStore())
        once = Idempotent(principal=lambda: "alice")

        @app.post("/webhooks")
        @once.protect(policy=Policy(key_headers=("webhook-id", "svix-id"), required=True))
        async def webhook() -> None: ...

        @app.post("/deliveries")
        @once.protect(policy=Policy(key_headers=("X-GitHub-Delivery",), required=True))
        async def delivery() -> None: ...

        paths = app.openapi()["paths"]
        several = paths["/webhooks"]["post"]["parameters"]
        assert [(one["name"], one["required"]) for one in several] == [
            ("webhook-id", False),
            ("svix-id", False),
        ]
        assert several[0]["description"].startswith("One of webhook-id or svix-id is required.")
        (single,) = paths["/deliveries"]["post"]["parameters"]
        assert (single["name"], single["required"]) == ("X-GitHub-Delivery", True)
        assert "X-GitHub-Delivery" in json.dumps(paths["/deliveries"]["post"]["responses"]["400"])

    def test_openapi_examples_of_refusals_are_rendered_by_the_policy(self) -> None:
        document = {
            "openapi": "3.1.0",
            "info": {"title": "Shop", "version": "1"},
            "paths": {"/": {"post": {"responses": {"422": {
                "description": "Invalid", "content": {"application/json": {"schema": {"type": "array"}}},
            }}}}},
        }  # fmt: skip
        policy = Policy(render=envelope, on_exception="keep")
        described = add_idempotency(document, policy)
        media = described["paths"]["/"]["post"]["responses"]["422"]["content"]["application/json"]
        assert media["schema"]["anyOf"][0] == {"type": "array"}
        assert media["examples"]["key-reused"]["value"]["error"]["code"] == "key-reused"
        failed = described["paths"]["/"]["post"]["responses"]["500"]["content"]["application/json"]
        assert failed["examples"]["first-run-failed"]["value"]["error"]["code"] == "first-run-failed"
        assert "problem+json" not in json.dumps(described)
        assert add_idempotency(described, policy) == described
