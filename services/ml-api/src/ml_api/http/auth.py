"""
Authentication by X-API-Key, before anything else is done with a request, a replay included.

The guard stands on the routes themselves: what is guarded does not depend on how the application is mounted or which
prefix a proxy adds. A path without a route needs a key too, so a stranger cannot find out which paths there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ml_api.http.api_keys import ApiKeys
from ml_api.http.failed_attempts import FailedAttempts
from ml_api.http.problems import problem_response

__all__ = [
    "API_KEY_HEADER",
    "Authentication",
    "Guard",
    "GuardedRoute",
    "caller",
    "client_address",
    "let_in",
]

API_KEY_HEADER = b"x-api-key"

_CALLER = "ml_api.caller"


def caller(scope: Scope) -> str:
    """
    The name of the key that a request was let in with, "" for the unnamed one. KeyError where none was
    checked.
    """
    name: str = scope[_CALLER]
    return name


def let_in(scope: Scope) -> bool:
    """Whether a request was let in with a key."""
    return _CALLER in scope


def client_address(scope: Scope) -> str:
    """The address that the request came from, as the server knows it; "" where it does not."""
    client = scope.get("client")
    return str(client[0]) if client else ""


class Authentication:
    """
    Lets a request through with the name of its key, or answers 401. Pure ASGI: it reads headers, never a
    body.

    Args:
        keys: Who may call.
        failures: Slows down whoever fails again and again; share one between all guards.
        refused: Called for each request that is refused.
        slowed: Called for each of them that was delayed, or refused without a look at its key.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys,
        failures: FailedAttempts | None = None,
        refused: Callable[[], None] = lambda: None,
        slowed: Callable[[], None] = lambda: None,
    ) -> None:
        self.app = app
        self._keys, self._failures = keys, failures or FailedAttempts()
        self._refused, self._slowed = refused, slowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        address = client_address(scope)
        if self._failures.blocked(address):
            self._refused()
            self._slowed()
            detail = "Too many requests with a wrong API key came from this address; try again in a second"
            refusal = problem_response(429, "too-many-failures", detail, {"Retry-After": "1"})
            return await refusal(scope, receive, send)
        presented = [value for name, value in scope["headers"] if name == API_KEY_HEADER]
        # Two fields are one too many: which of them a proxy in front looked at cannot be known.
        name = self._keys.name_of(presented[0]) if len(presented) == 1 else None
        if name is None:
            self._refused()
            if await self._failures.failed(address):
                self._slowed()
            refusal = problem_response(
                401,
                "unauthorized",
                "Invalid or missing API key: send it in the X-API-Key header",
                {"WWW-Authenticate": 'ApiKey realm="ml-api"'},
            )
            return await refusal(scope, receive, send)
        scope[_CALLER] = name
        return await self.app(scope, receive, send)


Guard = Callable[[ASGIApp], ASGIApp]
"""Wraps an application, as a middleware does."""


class GuardedRoute(Route):
    """
    A route behind a guard: whatever it would answer, 405 for another method included, the guard comes first.

    Args:
        guard: Wraps the whole route.
        options: As for Starlette's Route.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], *, guard: Guard, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._guarded = guard(super().handle)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guarded(scope, receive, send)
