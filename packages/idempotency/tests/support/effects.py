"""An application that counts its effects, and a store with replaceable methods: what most tests need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from idempotency import IdempotencyMiddleware, Policy, one_tenant
from idempotency.engine import Engine
from idempotency.errors import StoreUnavailable
from idempotency.store import Store

__all__ = [
    "Charges",
    "RequestCounter",
    "PatchedStore",
    "followers",
    "guard",
    "read_body",
    "respond",
    "unavailable",
]


def guard(app: Any, store: Any, *, policy: Any = None, **settings: Any) -> IdempotencyMiddleware:
    """The middleware around *app* for a single tenant; *settings* are the policy's."""
    return IdempotencyMiddleware(app, store=store, tenant=one_tenant(), policy=policy or Policy(**settings))


def followers(engine: Engine) -> int:
    """The number of requests that wait for a duplicate that *engine* runs in the same process."""
    return sum(len(in_flight.followers) for in_flight in engine.single_flight._by_key.values())


async def read_body(receive: Any) -> bytes:
    """The whole request body."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError("the client disconnected before its request was complete")
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def respond(
    send: Any,
    body: bytes | list[bytes] = b"",
    *,
    status: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = ((b"content-type", b"text/plain"),),
) -> None:
    """A whole response; *body* as a list is sent in that many messages."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    chunks = body if isinstance(body, list) else [body]
    for index, chunk in enumerate(chunks):
        await send({"type": "http.response.body", "body": chunk, "more_body": index < len(chunks) - 1})


class Charges:
    """
    An ASGI application that charges: its response is the number of the charge.

    Attributes:
        bodies: The bodies of the requests that ran, in order; their count is the count of effects.
        work: Awaited before the response, with the number of the run.
    """

    def __init__(self, work: Callable[[int], Awaitable[None]] | None = None, status: int = 201) -> None:
        self.bodies: list[bytes] = []
        self.scopes: list[Any] = []
        self.work = work
        self.status = status

    @property
    def runs(self) -> int:
        """The number of charges."""
        return len(self.bodies)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])  # as an application without a lifespan does
        body = await read_body(receive)
        self.bodies.append(body)
        self.scopes.append(dict(scope))
        number = self.runs
        if self.work is not None:
            await self.work(number)
        answer = b'{"charge": %d}' % number
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await respond(send, answer, status=self.status, headers=headers)


class RequestCounter:
    """An ASGI application around another that counts the requests that `started` and those that `finished`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.started = self.finished = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.started += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.finished += 1


class PatchedStore:
    """
    A store around another, with single methods replaced: `PatchedStore(store, renew=lost)`.

    A replacement is called with the real store and the arguments of the call. `calls` counts every method.
    """

    def __init__(self, store: Store, **replaced: Callable[..., Awaitable[Any]]) -> None:
        self.store = store
        self.calls: dict[str, int] = {}
        self.replaced = replaced

    def __getattr__(self, name: str) -> Any:
        if name not in {"acquire", "renew", "complete", "release", "get", "aclose"}:
            raise AttributeError(name)  # no `wait` and the like: the engine checks for optional methods

        async def method(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.replaced:
                return await self.replaced[name](self.store, *args, **kwargs)
            return await getattr(self.store, name)(*args, **kwargs)

        return method


async def unavailable(store: Store, *args: Any, **kwargs: Any) -> Any:
    """A replacement for any method: the store is unavailable."""
    raise StoreUnavailable("the store is down")
