"""The page that counts the records in each state: on request, by reading them all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from idempotency._core.description import StateName, state_name
from idempotency._core.errors import StoreError
from idempotency.counts.record import is_count
from idempotency.dashboard import markup
from idempotency.dashboard.context import DashboardContext
from idempotency.dashboard.requests import fields, is_from_elsewhere, root

__all__ = ["Totals"]

STEP: Final = 1_000  # records per call of the store
TOLD_EVERY: Final = 1.0  # s between two lines of progress
LONGEST: Final = 300.0  # s
_TITLE: Final = "Totals by state"


class Totals:
    """The view of the totals. Only one count runs at a time, because it keeps the store busy."""

    def __init__(self, context: DashboardContext) -> None:
        self._context = context
        self._counting = False

    async def totals(self, request: Request) -> Response:
        """Says what a count costs, or counts, if the query asks for it."""
        if fields(request.url.query).get("count") != "all" or is_from_elsewhere(request):
            link = markup.link(root(request) + "/totals", "Count all records", count="all")
            return self._context.page(
                request,
                _TITLE,
                [
                    "<p>No store keeps totals by state. They are counted by reading every record, page by page: with a "
                    "million records this takes from some seconds to minutes. You see the count while it grows, and "
                    f"it ends when you close the page or after {LONGEST:.0f} s.</p><p>{link}</p>"
                ],
            )
        if self._counting:
            return self._context.page(
                request,
                "Not now",
                ["<p>Another count is running. Try again when it is over.</p>"],
                status=429,
            )
        return StreamingResponse(self._counted(request), media_type="text/html; charset=utf-8")

    async def _counted(self, request: Request) -> AsyncIterator[str]:
        """The page, sent while the count goes on: each line of progress is appended, so no script is needed."""
        if self._counting:
            return
        self._counting = True
        counts: Counter[StateName] = Counter()
        ended, cursor = "", None
        began = told = time.monotonic()
        try:
            top, bottom = self._context.around(request, _TITLE)
            yield f'{top}<ul aria-label="So far">'
            while True:
                try:
                    page = await self._context.store.scan(limit=STEP, cursor=cursor)
                except StoreError as error:
                    ended = f"The count ended early, since the store did not answer: {error}"
                    break
                counts.update(state_name(record) for record in page.records if not is_count(record.key))
                cursor = page.cursor
                if cursor is None:
                    break
                now = time.monotonic()
                if now - began > LONGEST:
                    ended = f"The count ended after {LONGEST:.0f} s, and there are more records."
                    break
                if now - told > TOLD_EVERY:
                    told = now
                    yield f"<li>{markup.totals_line(counts)}</li>"
            yield f"</ul>{markup.totals_table(counts, ended, time.monotonic() - began)}{bottom}"
        finally:
            self._counting = False
