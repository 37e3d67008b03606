"""The dashboard as an ASGI application: what it reads, what it may change, and for whom."""

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
from idempotency.dashboard.changing import Changing
from idempotency.dashboard.desk import Desk
from idempotency.dashboard.looking import Looking
from idempotency.dashboard.rates import Rates
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
    The page, to be mounted where only those get who look after keys: `Mount("/keys", admins_only(dashboard(...)))`.

    It has no authorisation of its own: who reaches it sees the names of keys and, on request, recorded answers.

    Args:
        store: Any store that can be listed (`Inspectable`), for an event loop.
        writable: Whether records can be released, forgotten and purged; each on a page of its own that says what will
            happen and asks.
        counts: Shown beside what `idempotency.counts.StoreCounts` wrote into *store*, where the middleware of this
            process has it among its hooks.
        policy: Its `redact` is applied to an answer before it is shown.
        actor: Who asks, for the audit; such as ``lambda request: request.user.display_name``.
        audit: Told of every answer before it is shown, and of every change when it has been made; the log by default.
            What it raises is an error of the page.
        secret: At least 16 bytes, for the tokens in forms; needed where several processes serve one page.
    Raises:
        TypeError: *store* cannot be listed.

    Cost: a list reads at most 2,000 records of the store's own pages a request, also in a store of millions; it goes on
    from where it stopped. Finding a key is one read. The rates read one record for each of the last 60 minutes, and
    for each process and minute one more the first time. Totals read the whole store, and only when asked for.
    """
    if not isinstance(store, Inspectable):
        raise TypeError(
            f"the dashboard needs an Inspectable store, and a {type(store).__name__} cannot list its records"
        )
    tokens = FormTokens(secret or secrets.token_bytes(32))
    desk = Desk(store, writable, policy or Policy(), actor, audit, tokens)
    looking, changing = Looking(desk), Changing(desk)
    changes = [
        Route("/release", changing.confirm_release, methods=["GET"]),
        Route("/release", changing.release, methods=["POST"]),
        Route("/forget", changing.confirm_forget, methods=["GET"]),
        Route("/forget", changing.forget, methods=["POST"]),
        Route("/purge", changing.confirm_purge, methods=["GET"]),
        Route("/purge", changing.purge, methods=["POST"]),
    ]
    return Starlette(
        routes=[
            Route("/", looking.index, methods=["GET"]),
            Route("/find", looking.find, methods=["GET"]),
            Route("/record", looking.record, methods=["GET"]),
            Route("/totals", Totals(desk).totals, methods=["GET"]),
            Route("/rates", Rates(desk, counts).rates, methods=["GET"]),
            Route("/style.css", _style, methods=["GET"]),
            *(changes if writable else []),
        ],
        middleware=[Middleware(_Headers)],
        exception_handlers={StoreError: _store_failed},
    )


class _Headers:
    """Adds what keeps the pages private and inert to every answer."""

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
    # Its message is ours and names no password; it may quote a server.
    return PlainTextResponse(f"The store did not answer: {error}\n", 503)
