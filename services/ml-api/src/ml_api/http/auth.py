"""
Authentication by X-API-Key, before a request is processed or an answer is replayed.

The guard is part of each route, so it works also if the application is mounted elsewhere, or a proxy adds a prefix. A
path without a route needs a key too, so that strangers cannot find out which paths exist.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
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
    "is_authenticated",
]

API_KEY_HEADER = b"x-api-key"

_CALLER = "ml_api.caller"

caller: Callable[[Scope], str] = itemgetter(_CALLER)
"""Returns the name of the request's API key, "" for the key without a name; KeyError if no key was checked."""


def is_authenticated(scope: Scope) -> bool:
    """Whether the request had a valid key."""
    return _CALLER in scope


def client_address(scope: Scope) -> str:
    """Return the client's address, or "" if the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


class Authentication:
    """
    Passes a request with a valid key on, with the key's name in the scope; answers 401 to others. Never reads a body.

    Args:
        keys: The accepted keys.
        failures: Delays clients that fail often; all guards should share one.
        refused: Called for each refused request.
        slowed: Called for each refused request that was delayed, or refused without checking its key.
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
        # Two header fields are refused, because a proxy in front may have checked the other one.
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
    A route behind a guard, which runs before any answer of the route, also before a 405.

    Args:
        guard: Wraps the whole route.
        options: Those of Starlette's Route.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], *, guard: Guard, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._guarded = guard(super().handle)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guarded(scope, receive, send)
