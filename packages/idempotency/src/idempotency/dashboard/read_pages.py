"""The pages that show records: the list, the search, one record."""

from __future__ import annotations

from collections import Counter
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from idempotency._core.description import StateName, state_name
from idempotency._core.errors import IdempotencyError, StoreError
from idempotency._core.key import parse_key, storage_key
from idempotency._core.outcome import Response as Recorded
from idempotency._core.outcome import decode
from idempotency._core.types import Record, StorageKey, key_id
from idempotency.counts.record import is_count
from idempotency.dashboard import markup
from idempotency.dashboard.audit import AuditEvent
from idempotency.dashboard.context import DashboardContext
from idempotency.dashboard.requests import fields, root

__all__ = ["ReadPages"]

PAGE_RECORDS: Final = 50
MAX_SCANNED: Final = 2_000  # records that one page may read while it searches for a tenant or a state


class ReadPages:
    """The views that show records and change nothing."""

    def __init__(self, context: DashboardContext) -> None:
        self._context = context

    async def index(self, request: Request) -> Response:
        """A page of records."""
        query = fields(request.url.query)
        tenant, state = query.get("tenant", ""), query.get("state", "")
        found, scanned, cursor = await self._matching(tenant, state, query.get("cursor"))
        here = root(request)
        body = [
            markup.search_forms(here, tenant=tenant, state=state),
            markup.records_table(here, found),
            markup.shown_of(
                here,
                Counter(map(state_name, found)),
                scanned,
                whole=cursor is None and "cursor" not in query,
            ),
        ]
        if cursor is not None:
            body.append(
                f'<p class="next">{markup.link(here + "/", "Go on", tenant=tenant, state=state, cursor=cursor)}</p>'
            )
        return self._context.page(request, "Idempotency keys", body)

    async def _matching(
        self, tenant: str, state: str, cursor: str | None
    ) -> tuple[list[Record], int, str | None]:
        prefix = storage_key(tenant, "") if tenant else ""
        found: list[Record] = []
        scanned = 0
        # The number of pages is limited too, since a page may be empty if its records are unreadable.
        for _ in range(MAX_SCANNED):
            if len(found) >= PAGE_RECORDS or scanned >= MAX_SCANNED:
                break
            page = await self._context.store.scan(limit=PAGE_RECORDS, cursor=cursor)
            scanned += len(page.records)
            found += [
                record
                for record in page.records
                if record.key.startswith(prefix)
                and state in {"", state_name(record)}
                and not is_count(record.key)
            ]
            cursor = page.cursor
            if cursor is None:
                break
        return found, scanned, cursor

    async def find(self, request: Request) -> Response:
        """Redirect from a client's key, or from a key as the list shows it, to the page of its record."""
        query = fields(request.url.query)
        key = shown = query.get("key", "").strip()
        try:
            if key.startswith('"'):  # as it stands in the header
                key = parse_key([key.encode()]) or ""
            found = storage_key(query.get("tenant", "").strip(), key)
        except (IdempotencyError, ValueError) as error:
            return self._context.page(request, "No such key", [f"<p>{markup.text(error)}</p>"], status=400)
        if not query.get("tenant", "").strip():
            get, as_shown = self._context.store.get, StorageKey(shown)
            if await get(found) is None and await get(as_shown) is not None:
                found = as_shown
        return RedirectResponse(markup.address(root(request) + "/record", key=found), 303)

    async def record(self, request: Request) -> Response:
        """One record, its answer on request, and a link to change it."""
        query = fields(request.url.query)
        key = StorageKey(query.get("key", ""))
        record = await self._context.store.get(key)
        if record is None:
            return self._context.page(
                request,
                "No such record",
                ["<p>It never existed, has expired, or was released.</p>"],
                status=404,
            )
        here = root(request)
        body = [markup.record_details(record)]
        if record.outcome is not None:
            if query.get("show") == "outcome":
                event = AuditEvent(action="show-outcome", key_id=key_id(key), result="done")
                await self._context.tell(request, event)
                body.append(self._answer(record.outcome))
            else:
                body.append(
                    f"<p>{markup.link(here + '/record', 'Show the answer', key=key, show='outcome')}"
                    ' <span class="soft">Headers and body. Showing them is logged.</span></p>'
                )
        if self._context.writable:
            action, label = _CHANGE[state_name(record)]
            body.append(f"<p>{markup.link(f'{here}/{action}', label, key=key)}</p>")
        return self._context.page(request, record.key, body)

    def _answer(self, outcome: bytes) -> str:
        try:
            decoded = decode(outcome)
        except StoreError as error:
            return f"<p>{markup.text(error)}</p>"
        if not isinstance(decoded, Recorded):
            return '<p class="soft">The value of a decorated function, or an answer that was not kept.</p>'
        redact = self._context.policy.redact
        return markup.answer(redact(decoded) if redact else decoded)


_CHANGE: Final[dict[StateName, tuple[str, str]]] = {
    "completed": ("forget", "Forget this record..."),
    "running": ("release", "Release this key..."),
    "abandoned": ("release", "Release this key..."),
}
