"""Authentication as middleware: before routing, one caller name per key, 401 for everything else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from ml_api.http.api_keys import ApiKeys
from ml_api.http.auth import Authentication, GuardedRoute, caller
from ml_api.http.problems import render_http_exception

pytestmark = pytest.mark.anyio

REFUSALS: list[int] = []


async def caller_name(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"caller={caller(request.scope)}")


async def health(_: Request) -> PlainTextResponse:
    return PlainTextResponse("open")


@pytest.fixture
def client() -> httpx.AsyncClient:
    REFUSALS.clear()

    def guard(key: str) -> Callable[[ASGIApp], ASGIApp]:
        return partial(Authentication, keys=ApiKeys(single=key), refused=lambda: REFUSALS.append(401))

    routes = [
        GuardedRoute("/who", caller_name, guard=guard("right")),
        GuardedRoute("/admin/who", caller_name, guard=guard("boss")),
        Route("/health", health),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: render_http_exception})
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


async def test_a_valid_key_is_accepted_with_its_caller_name(client: httpx.AsyncClient) -> None:
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
async def test_a_missing_wrong_or_repeated_key_is_401_with_a_problem_and_counted(
    client: httpx.AsyncClient, headers: dict[str, str] | list[tuple[str, str]]
) -> None:
    answer = await client.get("/who", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].endswith("unauthorized")
    assert answer.headers["www-authenticate"].startswith("ApiKey")
    assert "X-API-Key" in answer.json()["detail"]
    assert REFUSALS == [401]


async def test_authentication_comes_before_method_not_allowed(client: httpx.AsyncClient) -> None:
    assert (await client.delete("/who")).status_code == 401
    refused = await client.delete("/who", headers={"X-API-Key": "right"})
    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert (await client.get("/health")).text == "open"


async def test_admin_routes_accept_only_the_admin_key(client: httpx.AsyncClient) -> None:
    assert (await client.get("/admin/who", headers={"X-API-Key": "right"})).status_code == 401
    assert (await client.get("/admin/who", headers={"X-API-Key": "boss"})).status_code == 200


def test_the_caller_of_an_unauthenticated_request_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        caller({"type": "http"})
