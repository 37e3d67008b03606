"""The key that each route requires, also in a mounted application, and the headers of every answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from idempotency.stores.memory import MemoryStore
from ml_api.app import create_app
from ml_api.http.auth import GuardedRoute
from ml_api.settings import Settings
from ml_api.stores.backend import Backend

pytestmark = pytest.mark.anyio

CALLER, ADMIN = "the-api-key-of-the-tests", "the-admin-key-of-the-tests"
PUBLIC = {"/health", "/ready", "/metrics", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"}


def application() -> Starlette:
    store = MemoryStore()
    settings = Settings.model_validate({"api_key": CALLER, "admin_key": ADMIN})
    return create_app(settings, backend=Backend("sqlite", store))


def test_every_route_outside_the_public_list_is_guarded() -> None:
    opened = {
        route.path
        for route in application().routes
        if isinstance(route, Route) and not isinstance(route, GuardedRoute)
    }
    assert {path for path in opened if not path.startswith("/docs")} == PUBLIC


@pytest.fixture(params=["plain", "root path", "mounted", "mounted under a root path"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    app, root, base = application(), "", ""
    if request.param == "root path":
        root = base = "/ml"  # a server with this option puts the prefix before every path
    elif request.param == "mounted":
        app, base = Starlette(routes=[Mount("/ml", app)]), "/ml"
    elif request.param == "mounted under a root path":
        app, root, base = Starlette(routes=[Mount("/ml", app)]), "/proxy", "/proxy/ml"
    transport = httpx.ASGITransport(app, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://service{base}") as opened:
        yield opened


async def test_each_route_requires_its_own_key_under_every_path_prefix(client: httpx.AsyncClient) -> None:
    caller, admin = {"X-API-Key": CALLER}, {"X-API-Key": ADMIN}
    assert (await client.get("/health")).status_code == 200
    for method in ("POST", "GET", "DELETE"):
        assert (await client.request(method, "/admin/model", headers=caller)).status_code == 401
    assert (await client.post("/admin/model", headers=admin)).status_code == 422
    assert (await client.post("/predict", headers=admin)).status_code == 401
    assert (await client.post("/predict", headers=caller)).status_code == 422
    assert (await client.get("/v2/models/btc-eth", headers=admin)).status_code == 401
    assert (await client.get("/v2/models/btc-eth", headers=caller)).status_code == 200
    assert (await client.get("/nothing")).status_code == 401
    assert (await client.get("/nothing", headers=caller)).status_code == 404


async def test_errors_under_v2_have_the_error_member_under_every_path_prefix(
    client: httpx.AsyncClient,
) -> None:
    assert "error" in (await client.get("/v2/models/btc-eth")).json()
    assert "error" not in (await client.get("/nothing")).json()


async def test_every_answer_has_nosniff_and_no_store(
    client: httpx.AsyncClient, body: Callable[..., bytes]
) -> None:
    caller = {"X-API-Key": CALLER, "Idempotency-Key": "k", "Content-Type": "application/json"}
    answers = [
        await client.get("/health"),
        await client.get("/nothing"),
        await client.post("/predict", content=body(), headers=caller),
        await client.post("/predict", content=body(), headers=caller),
        await client.options("/predict", headers={"Origin": "https://x.example"}),
    ]
    assert answers[3].headers["idempotency-replayed"] == "true"
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    page = await client.get("/docs/swagger-ui.css")
    assert page.headers.get_list("x-content-type-options") == ["nosniff"]
    assert page.headers["cache-control"] == "max-age=3600"
