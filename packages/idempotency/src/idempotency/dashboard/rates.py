"""The page of hits, misses, conflicts and takeovers by the minute."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from idempotency.counts import SERIES, Counts
from idempotency.counts.reader import CountsReader
from idempotency.dashboard import markup
from idempotency.dashboard.context import DashboardContext

__all__ = ["Rates"]

_MEANING = (
    '<p class="soft">Hits are answered from a record; misses run for the first time; conflicts are refused because of '
    "another request; takeovers run an abandoned operation again; a lost claim may mean a second effect.</p>"
)


class Rates:
    """
    The view of the counts.

    Args:
        own: The counts of this process, if it counts.
    """

    def __init__(self, context: DashboardContext, own: Counts | None) -> None:
        self._context = context
        self._own = own
        self._shared = CountsReader(context.store)

    async def rates(self, request: Request) -> Response:
        """The last hour."""
        shared = await self._shared.read()
        body = [_MEANING]
        if shared.records:
            body.append(markup.counts_table("In all processes", shared.per_minute))
            body.append(
                '<p class="soft">The last finished minutes, as each process wrote them into the store.'
                f"{'' if shared.whole else ' Not all are read yet: load this page again.'}</p>"
            )
        else:
            body.append(
                "<p>No process wrote counts into this store within the last hour. The hook "
                "<code>idempotency.counts.StoreCounts</code> does, once a minute: "
                "<code>hooks=[StoreCounts(open_sync_store(url))]</code>.</p>"
            )
        if self._own is not None:
            own = {series: self._own.per_minute(series) for series in SERIES}
            body.append(markup.counts_table("In this process", own))
        return self._context.page(request, "Rates", body)
