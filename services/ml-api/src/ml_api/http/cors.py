"""CORS (Fetch standard, 3.2), with a short way for requests that no page sends."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Receive, Scope, Send

__all__ = ["CORS"]

_VARY = (b"vary", b"Origin")


class CORS(CORSMiddleware):
    """Starlette's; but the answer to a request without an Origin, a backend's, only gets its `Vary`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or any(name == b"origin" for name, _ in scope["headers"]):
            return await super().__call__(scope, receive, send)

        async def send_with_vary(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _VARY]}
            await send(message)

        return await self.app(scope, receive, send_with_vary)
