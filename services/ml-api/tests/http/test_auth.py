"""Authentication as middleware: before everything, failing closed, one name per key."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ml_api.http.api_keys import ApiKeys
from ml_api.http.auth import Authentication, caller

pytestmark = pytest.mark.anyio

REFUSALS: list[int] = []


async def who(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"caller={caller(request.scope)}")


async def open_to_all(_: Request) -> PlainTextResponse:
    return PlainTextResponse("open")


@pytest.fixture
def client() -> httpx.AsyncClient:
    REFUSALS.clear()
    guard = Middleware(
        Authentication,
        keys=ApiKeys(single="right"),
        public={"/health"},
        other={"/admin/": ApiKeys(single="boss")},
        refused=lambda: REFUSALS.append(401),
    )
    routes = [Route(path, who) for path in ("/who", "/admin/who")] + [Route("/health", open_to_all)]
    app = Starlette(routes=routes, middleware=[guard])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


async def test_the_right_key_is_let_in_under_its_name(client: httpx.AsyncClient) -> None:
    assert (await client.get("/who", headers={"X-API-Key": "right"})).text == "caller="


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": "boss"},
        [("X-API-Key", "right"), ("X-API-Key", "right")],
        {"X-API-Key": "rightt"},
        {"Authorization": "right"},
    ],
)
async def test_anything_else_is_401_as_a_problem_and_counted(
    client: httpx.AsyncClient, headers: dict[str, str] | list[tuple[str, str]]
) -> None:
    answer = await client.get("/who", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].endswith("unauthorized")
    assert answer.headers["www-authenticate"].startswith("ApiKey")
    assert "X-API-Key" in answer.json()["detail"]
    assert REFUSALS == [401]


async def test_a_path_that_nobody_named_open_is_closed_even_if_nothing_is_there(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.get("/nowhere")).status_code == 401
    assert (await client.get("/nowhere", headers={"X-API-Key": "right"})).status_code == 404
    assert (await client.get("/health")).text == "open"
    assert (await client.get("/health/")).status_code == 401


async def test_the_admin_paths_have_keys_of_their_own(client: httpx.AsyncClient) -> None:
    assert (await client.get("/admin/who", headers={"X-API-Key": "right"})).status_code == 401
    assert (await client.get("/admin/who", headers={"X-API-Key": "boss"})).status_code == 200


def test_a_request_that_nobody_authenticated_has_no_caller() -> None:
    with pytest.raises(KeyError):
        caller({"type": "http"})
