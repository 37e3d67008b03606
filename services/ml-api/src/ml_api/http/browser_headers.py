"""Headers for browsers and caches on every answer, and CORS (Fetch standard, 3.2)."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CORS", "SecurityHeaders"]

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),  # browsers must not guess the media type
    (b"cache-control", b"no-store"),  # caches must not store the answer
    (b"vary", b"Origin"),  # a cache that stores it anyway must store one per origin
)


class SecurityHeaders:
    """
    Adds `X-Content-Type-Options`, `Cache-Control` and `Vary` to each answer that does not have them.

    Recorded answers do not contain them; a replay passes through here and gets them like every other answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = list(message.get("headers", ()))
                present = {name.lower() for name, _ in sent}
                missing = [header for header in _HEADERS if header[0] not in present]
                message = {**message, "headers": sent + missing}
            await send(message)

        return await self.app(scope, receive, send_with_headers)


class CORS(CORSMiddleware):
    """Starlette's CORS, skipped for requests without `Origin`; `SecurityHeaders` adds `Vary` to their answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, _ in scope.get("headers", ()):
            if name == b"origin":
                return await super().__call__(scope, receive, send)
        return await self.app(scope, receive, send)
