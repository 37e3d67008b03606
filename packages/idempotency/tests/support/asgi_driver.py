"""
A client for ASGI applications without a server: it sends what a test tells it to and keeps every message it gets.

Works under asyncio and trio. Header names are given in any case and travel in lower case, as servers send them.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

import anyio

__all__ = ["Answer", "App", "Headers", "RequestDriver", "call", "http_scope", "key_header"]

Message: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]
Headers: TypeAlias = Iterable[tuple[str | bytes, str | bytes]]


class Answer:
    """The response; its status is None where none was started."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        starts = [message for message in messages if message["type"] == "http.response.start"]
        assert len(starts) <= 1, f"{len(starts)} responses to one request"
        self.status: int | None = starts[0]["status"] if starts else None
        self.headers: list[tuple[bytes, bytes]] = list(starts[0].get("headers", ())) if starts else []
        self.chunks = [m.get("body", b"") for m in messages if m["type"] == "http.response.body"]
        self.body = b"".join(self.chunks)
        bodies = [message for message in messages if message["type"] == "http.response.body"]
        self.complete = bool(bodies) and not bodies[-1].get("more_body", False)

    def values(self, name: str) -> list[bytes]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower().encode()]

    def header(self, name: str) -> bytes | None:
        """The one value of a header, or None where there is none."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def replayed(self) -> bool:
        """Whether the middleware marked the response as a replay."""
        return self.header("idempotency-replayed") == b"true"

    @property
    def kept_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers without those that the middleware adds."""
        return [pair for pair in self.headers if not pair[0].startswith(b"idempotency-")]

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.headers} {self.body[:200]!r}>"


class RequestDriver:
    """One request, driven step by step: the test sends the body, disconnects, and reads the messages so far."""

    def __init__(self, app: App, scope: Message) -> None:
        self.scope = scope
        self.messages: list[Message] = []
        self.first_message = anyio.Event()  # set once the application has sent one
        self.disconnected = anyio.Event()
        self._app = app
        to_app, self._from_client = anyio.create_memory_object_stream[Message](math.inf)
        self._to_app = to_app

    def send_body(self, body: bytes, *, more_body: bool = False) -> None:
        """Send a part of the request's body."""
        self._to_app.send_nowait({"type": "http.request", "body": body, "more_body": more_body})

    def disconnect(self) -> None:
        """Close the connection."""
        self.disconnected.set()
        self._to_app.send_nowait({"type": "http.disconnect"})

    async def run(self) -> Answer:
        """Run the application and return its response; an exception of the application propagates."""
        try:
            await self._app(self.scope, self._receive, self._send)
        finally:
            self._to_app.close()
            self._from_client.close()
        return Answer(self.messages)

    async def _receive(self) -> Message:
        try:
            return self._from_client.receive_nowait()
        except anyio.WouldBlock:
            if self.disconnected.is_set():
                return {"type": "http.disconnect"}
        return await self._from_client.receive()

    async def _send(self, message: Message) -> None:
        self.messages.append(message)
        self.first_message.set()
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.disconnect()  # after a complete response a server reports nothing but the disconnect


def key_header(key: str | None) -> list[tuple[str, str]]:
    """The Idempotency-Key header as the draft writes it, or none."""
    return [] if key is None else [("idempotency-key", f'"{key}"')]


def http_scope(
    method: str = "POST",
    path: str = "/charges",
    *,
    headers: Headers = (),
    query: bytes = b"",
    **more: Any,
) -> Message:
    """An HTTP scope as uvicorn makes it."""
    pairs = [(_bytes(name).lower(), _bytes(value)) for name, value in headers]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": pairs,
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
    } | more


async def call(
    app: App,
    method: str = "POST",
    path: str = "/charges",
    *,
    key: str | None = None,
    headers: Headers = (),
    body: bytes | list[bytes] = b"{}",
    query: bytes = b"",
    **scope: Any,
) -> Answer:
    """One request by a client that stays connected; *body* as a list is sent in that many messages."""
    driver = RequestDriver(
        app, http_scope(method, path, headers=[*key_header(key), *headers], query=query, **scope)
    )
    chunks = body if isinstance(body, list) else [body]
    for index, chunk in enumerate(chunks):
        driver.send_body(chunk, more_body=index < len(chunks) - 1)
    return await driver.run()


def _bytes(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text
