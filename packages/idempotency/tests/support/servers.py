"""Real servers on the loopback, in the test's own event loop: they share the test's stores and counters."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import uvicorn
from granian.constants import Interfaces
from granian.server.embed import Server as Granian
from patience import until
from ports import free_port

__all__ = ["SERVERS", "serve", "serve_granian", "serve_hypercorn", "serve_uvicorn"]

SERVERS = ["uvicorn-h11", "uvicorn-httptools", "hypercorn", "granian"]
"""The servers that `serve` can start."""


class _Served:
    """
    An application, and the number of its calls that have not returned.

    A client has its response before the framework has closed what the request opened. A server that is stopped in
    between cancels the rest of the call, and Django's handler then leaves the request's body open.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request; or the lifespan, which is not counted: it ends when the server is stopped."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        self.calls += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.calls -= 1

    async def idle(self) -> None:
        """Return once every call has returned."""
        await until(lambda: not self.calls)


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def serve_uvicorn(app: Any, *, http: str = "h11", **options: Any) -> AsyncIterator[int]:
    """Serve *app* by uvicorn; the port."""
    served = _Served(app)
    with _listen() as listener:
        config = uvicorn.Config(
            served,
            http=http,
            lifespan=options.pop("lifespan", "off"),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
            **options,
        )
        server = uvicorn.Server(config)
        # Not serve(): that would take over the signals of the process that runs the tests.
        task = asyncio.create_task(server._serve(sockets=[listener]))
        try:
            await until(lambda: server.started or task.done())
            assert server.started, "uvicorn did not start"
            yield listener.getsockname()[1]
            await served.idle()
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def serve_hypercorn(app: Any) -> AsyncIterator[int]:
    """Serve *app* by hypercorn, HTTP/1.1 and HTTP/2 with prior knowledge; the port."""
    listener = _listen()
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    config.graceful_timeout = 1
    config.shutdown_timeout = 1
    stop = asyncio.Event()
    sockets = config.create_sockets()
    port = sockets.insecure_sockets[0].getsockname()[1]
    config.create_sockets = lambda: sockets  # type: ignore[method-assign]
    served = _Served(app)
    task = asyncio.create_task(
        hypercorn.asyncio.serve(served, config, shutdown_trigger=stop.wait, mode="asgi")
    )
    try:
        await _connectable(port, task)
        yield port
        await served.idle()
    finally:
        stop.set()
        await task


@asynccontextmanager
async def serve_granian(app: Any) -> AsyncIterator[int]:
    """Serve *app* by granian, HTTP/1.1 and HTTP/2 with prior knowledge; the port."""
    port = free_port()
    served = _Served(app)
    server = Granian(served, port=port, interface=Interfaces.ASGINL, log_enabled=False)
    task = asyncio.create_task(server.serve())
    try:
        await _connectable(port, task)
        yield port
        await served.idle()
    finally:
        server.stop()
        await task


async def _connectable(port: int, task: asyncio.Task[Any]) -> None:
    async def takes_connections() -> bool:
        assert not task.done(), "the server did not start"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await until(takes_connections)


@asynccontextmanager
async def serve(app: Any, server: str) -> AsyncIterator[int]:
    """Serve *app* by "uvicorn-h11", "uvicorn-httptools", "hypercorn" or "granian"; the port."""
    if server == "hypercorn":
        async with serve_hypercorn(app) as port:
            yield port
    elif server == "granian":
        async with serve_granian(app) as port:
            yield port
    else:
        async with serve_uvicorn(app, http=server.removeprefix("uvicorn-")) as port:
            yield port
