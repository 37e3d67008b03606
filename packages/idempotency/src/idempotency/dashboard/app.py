"""The dashboard as an ASGI application: its routes, its settings and its response headers."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from importlib.resources import files
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idempotency._core.errors import StoreError
from idempotency._core.policy import Policy
from idempotency.counts import Counts
from idempotency.dashboard.audit import AuditEvent, log_audit
from idempotency.dashboard.change_pages import ChangePages
from idempotency.dashboard.context import DashboardContext
from idempotency.dashboard.rates import Rates
from idempotency.dashboard.read_pages import ReadPages
from idempotency.dashboard.tokens import FormTokens
from idempotency.dashboard.totals import Totals
from idempotency.store import Inspectable, ManagedStore

__all__ = ["dashboard"]

HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
     b"frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)  # fmt: skip


def dashboard(
    store: ManagedStore,
    *,
    writable: bool = False,
    counts: Counts | None = None,
    policy: Policy | None = None,
    actor: Callable[[Request], str] = lambda _: "",
    audit: Callable[[AuditEvent], None] = log_audit,
    secret: bytes | None = None,
) -> Starlette:
    """
    The dashboard, to be mounted where only operators have access: `Mount("/keys", admins_only(dashboard(...)))`.

    It has no authorisation of its own: everyone with access sees the names of keys and, on request, recorded answers.

    Args:
        store: Any async store that can list its records (`Inspectable`).
        writable: Whether records can be released, forgotten and purged; each change has a page that says what will
            happen and asks for confirmation.
        counts: The counts of this process, if the middleware has them among its hooks. They are shown beside the counts
            that `idempotency.counts.StoreCounts` wrote into *store*.
        policy: Its `redact` is applied to an answer before it is shown.
        actor: Returns who made the request, for the audit, such as ``lambda request: request.user.display_name``.
        audit: Called before each answer is shown, and after each change; by default it writes to the log. If it raises,
            the page fails.
        secret: At least 16 bytes, for the tokens in forms; needed if several processes serve the dashboard.
    Raises:
        TypeError: *store* cannot list its records.

    Cost: a list reads at most about 2,000 records per request, even in a store of millions; the next page continues
    from there. Finding a key is one read. The rates read one record for each of the last 60 minutes, and one more for
    each process and minute the first time. Totals read the whole store, only on request.
    """
    if not isinstance(store, Inspectable):
        raise TypeError(
            f"the dashboard needs an Inspectable store, but a {type(store).__name__} cannot list its records"
        )
    tokens = FormTokens(secret or secrets.token_bytes(32))
    context = DashboardContext(store, writable, policy or Policy(), actor, audit, tokens)
    read, change = ReadPages(context), ChangePages(context)
    changes = [
        Route("/release", change.confirm_release, methods=["GET"]),
        Route("/release", change.release, methods=["POST"]),
        Route("/forget", change.confirm_forget, methods=["GET"]),
        Route("/forget", change.forget, methods=["POST"]),
        Route("/purge", change.confirm_purge, methods=["GET"]),
        Route("/purge", change.purge, methods=["POST"]),
    ]
    return Starlette(
        routes=[
            Route("/", read.index, methods=["GET"]),
            Route("/find", read.find, methods=["GET"]),
            Route("/record", read.record, methods=["GET"]),
            Route("/totals", Totals(context).totals, methods=["GET"]),
            Route("/rates", Rates(context, counts).rates, methods=["GET"]),
            Route("/style.css", _style, methods=["GET"]),
            *(changes if writable else []),
        ],
        middleware=[Middleware(_Headers)],
        exception_handlers={StoreError: _store_failed},
    )


class _Headers:
    """Adds security headers to every answer: no caching, no scripts, no framing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _style(_: Request) -> Response:
    return Response((files("idempotency.dashboard") / "style.css").read_text(), media_type="text/css")


def _store_failed(_: Request, error: Exception) -> Response:
    # The message is the library's own and contains no password; it may quote the server.
    return PlainTextResponse(f"The store did not answer: {error}\n", 503)
