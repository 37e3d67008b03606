"""Tenants: a principal keeps its records when its credential is replaced; a credential as tenant warns."""

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

HOLDERS = {"Bearer a-1": "alice", "Bearer a-2": "alice", "Bearer b-1": "bob"}


class Tokens(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        holder = HOLDERS.get(conn.headers.get("authorization", ""))
        return None if holder is None else (AuthCredentials(), SimpleUser(holder))


def shop(tenant: Any) -> TestClient:
    """A shop that counts its charges, behind a middleware that authenticates, and this one inside."""
    charges = itertools.count(1)

    async def charge(request: Request) -> JSONResponse:
        return JSONResponse({"charge": next(charges)}, 201)

    app = Starlette(
        routes=[Route("/charges", charge, methods=["POST"])],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=Tokens()),
            Middleware(IdempotencyMiddleware, store=MemoryStore(), tenant=tenant),
        ],
    )
    return TestClient(app, raise_server_exceptions=False, headers={"Idempotency-Key": '"order-1"'})


def charged(client: TestClient, token: str | None) -> Any:
    return client.post("/charges", headers={} if token is None else {"Authorization": f"Bearer {token}"})


def test_a_retry_with_a_renewed_token_is_answered_from_the_record() -> None:
    client = shop(by_user())
    first, again = charged(client, "a-1"), charged(client, "a-2")
    assert first.json() == again.json() == {"charge": 1}
    assert again.headers["Idempotency-Replayed"] == "true"
    assert charged(client, "b-1").json() == {"charge": 2}, "another user's key is another key"


def test_a_token_for_a_principal_charges_twice_once_it_is_renewed() -> None:
    client = shop(by_header("Authorization", stable=True))  # a lie, and this is what it costs
    assert [charged(client, token).json() for token in ("a-1", "a-2")] == [{"charge": 1}, {"charge": 2}]


def test_a_request_that_is_not_authenticated_is_refused_before_it_runs() -> None:
    client = shop(by_user())
    refused = charged(client, None)
    assert (refused.status_code, refused.json()["type"]) == (400, "urn:problem:idempotency:missing-tenant")
    assert charged(client, "a-1").json() == {"charge": 1}


@pytest.mark.anyio
async def test_without_an_authentication_outside_the_error_says_where_to_put_it() -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_user())
    with pytest.raises(RuntimeError, match=r"put a middleware that authenticates requests outside"):
        await call(app, key="k")
    assert len(charges.bodies) == 0


class Asking(BaseUser):
    """A user as Starlette's base class leaves it: with an `identity` that raises."""

    id = 7
    is_authenticated = True  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("user", "tenant"),
    [
        ("alice", "alice"),
        (7, "7"),
        (SimpleUser("alice"), "alice"),
        (Asking(), "7"),
        (SimpleNamespace(pk=3, username="alice", is_authenticated=True), "3"),  # Django's
        (SimpleNamespace(id=UUID(int=5)), str(UUID(int=5))),
        (SimpleNamespace(identity="u-1", id=9), "u-1"),
        ({"sub": "auth0|1", "exp": 5, "jti": "x"}, "auth0|1"),
        ({"id": 0}, "0"),
    ],
)
def test_the_identifier_of_common_users_is_found(user: Any, tenant: str) -> None:
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
def test_a_user_without_an_identifier_is_an_error_and_no_shared_tenant(user: Any) -> None:
    with pytest.raises(TypeError, match="identifier"):
        by_user()(http_scope(user=user))


def test_an_identifier_of_ones_own_is_taken_from_the_user() -> None:
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
def test_a_credential_for_a_principal_warns_at_set_up_and_not_at_requests(name: str) -> None:
    with pytest.warns(CredentialTenantWarning, match=r"Use by_user\(\)") as caught:
        tenant = by_header(name)
    assert [warning.filename for warning in caught] == [__file__]
    assert "stable=True" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tenant(http_scope(headers=[(name, "one")]))
        tenant(http_scope(headers=[(name, "two")]))


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_tenant_declared_stable_is_not_warned_about(name: str) -> None:
    by_header(name, stable=True)  # warnings are errors here


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
def test_a_header_that_names_the_caller_does_not_warn(name: str) -> None:
    by_header(name)  # warnings are errors here


def test_blanks_round_a_value_make_no_other_tenant() -> None:
    tenant = by_header("X-User-Id")
    assert (
        len({tenant(http_scope(headers=[("x-user-id", value)])) for value in ("alice", "alice \t", " alice")})
        == 1
    )
    with pytest.raises(MissingTenant):
        tenant(http_scope(headers=[("x-user-id", " \t")]))


def test_an_invalid_header_name_is_refused() -> None:
    for name in ("", "X User", "user\n", "ключ"):
        with pytest.raises(ValueError, match="name of a header"):
            by_header(name)
