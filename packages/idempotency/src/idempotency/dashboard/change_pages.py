"""
The pages that change records: release, forget and purge, each in two steps.

The first step says what will happen and changes nothing; its form is bound to the action, the record, the run that was
shown and the browser. The second step makes the change, reports it to the audit, and shows the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import Response

from idempotency._core.description import state_name
from idempotency._core.types import Claim, Record, StorageKey, key_id
from idempotency.dashboard import markup
from idempotency.dashboard.audit import AuditEvent
from idempotency.dashboard.context import DashboardContext
from idempotency.dashboard.requests import fields, form, root
from idempotency.store import Purgeable

__all__ = ["PURGE_LIMIT", "ChangePages"]

PURGE_LIMIT: Final = 1_000  # records at most, in one step


class ChangePages:
    """The views that change records."""

    def __init__(self, context: DashboardContext) -> None:
        self._context = context

    async def confirm_release(self, request: Request) -> Response:
        """The page that asks for confirmation before a release."""
        return await self._confirm(request, "release", _RELEASE)

    async def confirm_forget(self, request: Request) -> Response:
        """The page that asks for confirmation before a record is forgotten."""
        return await self._confirm(request, "forget", _FORGET)

    async def _confirm(
        self, request: Request, action: str, consequences: Mapping[str, Sequence[str]]
    ) -> Response:
        key = StorageKey(fields(request.url.query).get("key", ""))
        record = await self._context.store.get(key)
        if record is None:
            return self._answered(request, AuditEvent(action="release", key_id=key_id(key), result="absent"))
        state = state_name(record)
        if state not in consequences:
            text = f"<p>The record is {state}. {markup.link(root(request) + '/record', 'Look at it', key=key)}</p>"
            return self._context.page(request, f"Cannot {action} this key", [text], status=409)
        browser = self._context.tokens.browser(request)
        seen = _stamp(record) if action == "release" else ""
        hidden = {
            "key": quote(key, errors="surrogateescape"),  # a key may contain bytes that HTML cannot
            "seen": seen,
            "token": self._context.tokens.make(browser, action, key, seen),
        }
        body = [
            markup.record_details(record),
            markup.confirmation(
                root(request),
                action,
                hidden,
                consequences=[*consequences[state], *self._told(request)],
                label=f"{action.capitalize()} this key",
                back=markup.address(root(request) + "/record", key=key),
            ),
        ]
        return self._context.page(request, f"{action.capitalize()} {key}?", body, browser=browser)

    def _told(self, request: Request) -> list[str]:
        actor = self._context.actor(request)
        return [
            f"The audit will say that {actor} did this."
            if actor
            else "The audit will say that this was done."
        ]

    async def release(self, request: Request) -> Response:
        """Free the key of the run that was shown, and of no other."""
        sent = await form(request)
        key, seen = _key(sent), sent.get("seen", "")
        if not self._context.tokens.fits(request, sent.get("token", ""), "release", key, seen):
            return self._refused(request)
        record = await self._context.store.get(key)
        if record is None:
            return await self._done(
                request, AuditEvent(action="release", key_id=key_id(key), result="absent")
            )
        claim = Claim(key, record.owner, record.attempt, record.fence)
        done = _stamp(record) == seen and await self._context.store.release(claim)
        result = AuditEvent(
            action="release",
            key_id=key_id(key),
            result="done" if done else "changed",
            count=int(done),
        )
        return await self._done(request, result)

    async def forget(self, request: Request) -> Response:
        """Delete a completed record."""
        sent = await form(request)
        key = _key(sent)
        if not self._context.tokens.fits(request, sent.get("token", ""), "forget", key, ""):
            return self._refused(request)
        done = await self._context.store.forget(key)
        result = AuditEvent(
            action="forget",
            key_id=key_id(key),
            result="done" if done else "absent",
            count=int(done),
        )
        return await self._done(request, result)

    async def confirm_purge(self, request: Request) -> Response:
        """The page that asks for confirmation before a purge."""
        if not isinstance(self._context.store, Purgeable):
            return self._no_purge(request)
        browser = self._context.tokens.browser(request)
        consequences = [
            f"Up to {PURGE_LIMIT:,} records that have expired are deleted, to give back their space.",
            "No answer to any request changes: an expired record counts as absent already.",
            *self._told(request),
        ]
        hidden = {"token": self._context.tokens.make(browser, "purge")}
        body = markup.confirmation(
            root(request),
            "purge",
            hidden,
            consequences=consequences,
            label="Purge expired records",
            back=root(request) + "/",
        )
        return self._context.page(request, "Purge expired records?", [body], browser=browser)

    async def purge(self, request: Request) -> Response:
        """Delete expired records, at most `PURGE_LIMIT` of them."""
        if not isinstance(self._context.store, Purgeable):
            return self._no_purge(request)
        if not self._context.tokens.fits(request, (await form(request)).get("token", ""), "purge"):
            return self._refused(request)
        count = await self._context.store.purge(limit=PURGE_LIMIT)
        return await self._done(request, AuditEvent(action="purge", key_id="", result="done", count=count))

    def _no_purge(self, request: Request) -> Response:
        return self._context.page(
            request, "Nothing to purge", ["<p>This store deletes expired records by itself.</p>"], status=404
        )

    def _refused(self, request: Request) -> Response:
        return self._context.page(
            request, "Not done", ["<p>The form is not valid any more. Open the page again.</p>"], status=403
        )

    async def _done(self, request: Request, event: AuditEvent) -> Response:
        await self._context.tell(request, event)
        return self._answered(request, event)

    def _answered(self, request: Request, event: AuditEvent) -> Response:
        said = {
            "done": f"Done: {event.action}, {event.count} record{'' if event.count == 1 else 's'}.",
            "changed": "Not done: the record changed after it was shown. Look again.",
            "absent": "Not done: there is no such record any more.",
        }[event.result]
        body = f"<p>{said}</p><p>{markup.link(root(request) + '/', 'All keys')}</p>"
        return self._context.page(
            request, said.partition(":")[0], [body], status=200 if event.result == "done" else 409
        )


def _key(sent: dict[str, str]) -> StorageKey:
    return StorageKey(unquote(sent.get("key", ""), errors="surrogateescape"))


def _stamp(record: Record) -> str:
    """A digest of the owner, which identifies this run of the key; the owner itself is never shown."""
    return key_id(StorageKey(record.owner.hex()))


_RELEASE: Final[Mapping[str, Sequence[str]]] = {
    "running": (
        "It is running, and its lease is renewed.",
        "If it is released, the next request with this key runs at once: there may be two effects.",
        "The run itself is not stopped. Release it only if its process is known to be gone.",
    ),
    "abandoned": (
        "Its process is gone or stalled; it is not known whether it had its effect. Find out in your own data first.",
        "If it is released, the next request with this key runs.",
        "If it had its effect, leave the record: then no retry makes a second one.",
    ),
}
_FORGET: Final[Mapping[str, Sequence[str]]] = {
    "completed": (
        "The operation is done, and retries get its recorded answer.",
        "If the record is forgotten, that answer is lost, and the next request with this key runs again: there may be "
        "two effects.",
    ),
}
