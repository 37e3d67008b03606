"""
Authentication: X-API-Key before anything else is done with a request, a replay included.

It fails closed: a path is open only if it was named open, so a route added later is guarded without a word
about it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from ml_api.http.api_keys import ApiKeys
from ml_api.http.problems import problem_response

__all__ = ["API_KEY_HEADER", "Authentication", "caller", "let_in"]

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


class Authentication:
    """
    Lets a request through with the name of its key, or answers 401. Pure ASGI: it reads headers, never a
    body.

    Args:
        keys: Who may call.
        public: Exact paths that need no key.
        other: Paths that other keys guard, by prefix.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys,
        public: Collection[str],
        other: Mapping[str, ApiKeys] | None = None,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self.app = app
        self._keys, self._public, self._refused = keys, frozenset(public), refused
        self._other = tuple((other or {}).items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard HTTP; a lifespan passes, a WebSocket is not served here and is closed by the router."""
        if scope["type"] != "http" or scope["path"] in self._public:
            return await self.app(scope, receive, send)
        keys = next((keys for prefix, keys in self._other if scope["path"].startswith(prefix)), self._keys)
        presented = [value for name, value in scope["headers"] if name == API_KEY_HEADER]
        # Two fields are one too many: which of them a proxy in front looked at cannot be known.
        name = keys.name_of(presented[0]) if len(presented) == 1 else None
        if name is None:
            self._refused()
            refusal = problem_response(
                401,
                "unauthorized",
                "Invalid or missing API key: send it in the X-API-Key header",
                {"WWW-Authenticate": 'ApiKey realm="ml-api"'},
            )
            return await refusal(scope, receive, send)
        scope[_CALLER] = name
        return await self.app(scope, receive, send)
