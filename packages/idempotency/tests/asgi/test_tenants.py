"""Tenants: `by_user` keeps records when a credential is renewed; a credential as tenant warns."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from asgi_driver import call, http_scope
from effects import Charges
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from idempotency import (
    CredentialTenantWarning,
    IdempotencyMiddleware,
    MissingTenant,
    by_header,
    by_user,
)
from idempotency.stores.memory import MemoryStore

TOKEN_OWNERS = {"Bearer a-1": "alice", "Bearer a-2": "alice", "Bearer b-1": "bob"}


class TokenBackend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        owner = TOKEN_OWNERS.get(conn.headers.get("authorization", ""))
        return None if owner is None else (AuthCredentials(), SimpleUser(owner))


def client_of(tenant: Any) -> TestClient:
    """A client of an application that counts its charges, behind authentication and then this middleware."""
    charges = itertools.count(1)

    async def charge(request: Request) -> JSONResponse:
        return JSONResponse({"charge": next(charges)}, 201)

    app = Starlette(
        routes=[Route("/charges", charge, methods=["POST"])],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=TokenBackend()),
            Middleware(IdempotencyMiddleware, store=MemoryStore(), tenant=tenant),
        ],
    )
    return TestClient(app, raise_server_exceptions=False, headers={"Idempotency-Key": '"order-1"'})


def post_charge(client: TestClient, token: str | None) -> Any:
    return client.post("/charges", headers={} if token is None else {"Authorization": f"Bearer {token}"})


def test_by_user_replays_a_retry_with_a_renewed_token() -> None:
    client = client_of(by_user())
    first, again = post_charge(client, "a-1"), post_charge(client, "a-2")
    assert first.json() == again.json() == {"charge": 1}
    assert again.headers["Idempotency-Replayed"] == "true"
    assert post_charge(client, "b-1").json() == {"charge": 2}, "the same key of another user runs"


def test_by_header_with_a_token_runs_again_after_the_token_is_renewed() -> None:
    client = client_of(by_header("Authorization", stable=True))  # a false declaration
    assert [post_charge(client, token).json() for token in ("a-1", "a-2")] == [{"charge": 1}, {"charge": 2}]


def test_by_user_refuses_an_unauthenticated_request_before_it_runs() -> None:
    client = client_of(by_user())
    refused = post_charge(client, None)
    assert (refused.status_code, refused.json()["type"]) == (400, "urn:problem:idempotency:missing-tenant")
    assert post_charge(client, "a-1").json() == {"charge": 1}


@pytest.mark.anyio
async def test_by_user_without_authentication_outside_raises_with_advice() -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_user())
    with pytest.raises(RuntimeError, match=r"put a middleware that authenticates requests outside"):
        await call(app, key="k")
    assert len(charges.bodies) == 0


class UserWithoutIdentity(BaseUser):
    """A user as Starlette's base class leaves it: with an `identity` that raises."""

    id = 7
    is_authenticated = True  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("user", "tenant"),
    [
        ("alice", "alice"),
        (7, "7"),
        (SimpleUser("alice"), "alice"),
        (UserWithoutIdentity(), "7"),
        (SimpleNamespace(pk=3, username="alice", is_authenticated=True), "3"),  # Django's
        (SimpleNamespace(id=UUID(int=5)), str(UUID(int=5))),
        (SimpleNamespace(identity="u-1", id=9), "u-1"),
        ({"sub": "auth0|1", "exp": 5, "jti": "x"}, "auth0|1"),
        ({"id": 0}, "0"),
    ],
)
def test_by_user_finds_the_identifier_of_common_user_types(user: Any, tenant: str) -> None:
    assert by_user()(http_scope(user=user)) == tenant


@pytest.mark.parametrize(
    "user",
    [
        SimpleNamespace(),
        SimpleNamespace(id=None),
        SimpleNamespace(id=True),
        {},
        {"sub": None},
        " ",
        {"sub": ""},
        1.5,
    ],
)
def test_by_user_raises_for_a_user_without_identifier(user: Any) -> None:
    with pytest.raises(TypeError, match="identifier"):
        by_user()(http_scope(user=user))


def test_by_user_accepts_a_custom_identifier_function() -> None:
    tenant = by_user(lambda user: f"{user['iss']} {user['sub']}")
    assert tenant(http_scope(user={"iss": "https://a", "sub": "1"})) == "https://a 1"
    with pytest.raises(TypeError, match="subject must be a plain function"):
        by_user("id")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a NoneType"):
        by_user(lambda user: None)(http_scope(user="alice"))


CREDENTIALS = (
    "Authorization",
    "authorization",
    "Proxy-Authorization",
    "Cookie",
    "X-API-Key",
    "Api-Key",
    "X-Auth-Token",
    "X-Access-Token",
    "X-Session-Id",
    "X-CSRF-Token",
    "Signature",
    "DPoP",
    "X-Hub-Signature-256",
    "X-Amzn-Oidc-Data",
    "Cf-Access-Jwt-Assertion",
    "X-Forwarded-Client-Cert",
    "Ocp-Apim-Subscription-Key",
)


@pytest.mark.parametrize("name", CREDENTIALS)
def test_by_header_with_a_credential_warns_at_set_up_and_not_at_requests(name: str) -> None:
    with pytest.warns(CredentialTenantWarning, match=r"Use by_user\(\)") as caught:
        tenant = by_header(name)
    assert [warning.filename for warning in caught] == [__file__]
    assert "stable=True" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tenant(http_scope(headers=[(name, "one")]))
        tenant(http_scope(headers=[(name, "two")]))


@pytest.mark.parametrize("name", CREDENTIALS)
def test_by_header_declared_stable_does_not_warn(name: str) -> None:
    tenant = by_header(name, stable=True)  # warnings are errors here
    assert len({tenant(http_scope(headers=[(name, value)])) for value in ("one", "two")}) == 2


@pytest.mark.parametrize(
    "name",
    [
        "X-User-Id",
        "X-Forwarded-User",
        "X-Auth-Request-Email",
        "X-Api-Key-Id",
        "X-Tenant",
        "X-SSL-Client-S-DN",
    ],
)
def test_by_header_that_names_the_caller_does_not_warn(name: str) -> None:
    tenant = by_header(name)  # warnings are errors here
    assert len({tenant(http_scope(headers=[(name, value)])) for value in ("alice", "bob")}) == 2


def test_by_header_ignores_whitespace_around_the_value() -> None:
    tenant = by_header("X-User-Id")
    assert (
        len({tenant(http_scope(headers=[("x-user-id", value)])) for value in ("alice", "alice \t", " alice")})
        == 1
    )
    with pytest.raises(MissingTenant):
        tenant(http_scope(headers=[("x-user-id", " \t")]))


def test_by_header_refuses_an_invalid_header_name() -> None:
    for name in ("", "X User", "user\n", "ключ"):
        with pytest.raises(ValueError, match="name of a header"):
            by_header(name)
