"""`idempotency dashboard`: serves the dashboard on this machine only, at an address that cannot be guessed."""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from idempotency._runtime.extras import missing

try:
    import uvicorn
except ModuleNotFoundError as _error:
    raise missing("dashboard", "the dashboard's server", _error) from _error

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount

from idempotency.dashboard.app import dashboard
from idempotency.store import ManagedStore

__all__ = ["serve"]


def serve(store: ManagedStore, *, port: int, writable: bool) -> None:
    """
    Serve until interrupted, and print the address.

    Args:
        port: The port; 0 takes a free one.

    Other users of this machine could reach the port, and other sites could reach it through the browser with a host
    name that points here. So the address has a random part, and only requests for its host are answered.
    """
    path = f"/{secrets.token_urlsafe(24)}"

    @asynccontextmanager
    async def closing(_: Starlette) -> AsyncIterator[None]:
        yield
        await store.aclose()

    app = Starlette(
        routes=[Mount(path, dashboard(store, writable=writable))],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1"])],
        lifespan=closing,
    )
    with socket.create_server(("127.0.0.1", port)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}{path}/"
        mode = "records can be changed" if writable else "read-only"
        print(f"{address}  ({mode}; Ctrl-C ends it)", file=sys.stdout, flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none")
        uvicorn.Server(config).run(sockets=[listener])
