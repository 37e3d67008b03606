"""What all pages of the dashboard share: its settings, the report to the audit, and the layout of a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from idempotency._core.policy import Policy
from idempotency.dashboard import markup
from idempotency.dashboard.audit import AuditEvent
from idempotency.dashboard.requests import root
from idempotency.dashboard.tokens import COOKIE, FormTokens
from idempotency.store import ManagedStore, Purgeable

__all__ = ["DashboardContext"]


@dataclass(frozen=True, slots=True)
class DashboardContext:
    """The settings of one dashboard (see `dashboard`), and what its pages do with them."""

    store: ManagedStore
    writable: bool
    policy: Policy
    actor: Callable[[Request], str]
    audit: Callable[[AuditEvent], None]
    tokens: FormTokens

    async def tell(self, request: Request, event: AuditEvent) -> None:
        """Report *event*, with its actor, to the audit; in a thread, because the audit may write to a database."""
        await run_in_threadpool(self.audit, replace(event, actor=self.actor(request)))

    def page(
        self,
        request: Request,
        title: str,
        body: Iterable[str],
        *,
        status: int = 200,
        browser: str | None = None,
    ) -> Response:
        """
        A whole page.

        Args:
            browser: The browser's name, which binds the forms of the page; None if the page has no forms.
        """
        top, bottom = self.around(request, title)
        response = HTMLResponse(f"{top}{''.join(body)}{bottom}", status)
        if browser is not None and request.cookies.get(COOKIE) != browser:
            response.set_cookie(
                COOKIE,
                browser,
                path=root(request) or "/",
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return response

    def around(self, request: Request, title: str) -> tuple[str, str]:
        """The HTML before and after the body of a page."""
        pages = {"": "Keys", "totals": "Totals", "rates": "Rates"}
        if self.writable and isinstance(self.store, Purgeable):
            pages["purge"] = "Purge"
        return markup.around(root(request), title, pages, request.url.path.rpartition("/")[2])
