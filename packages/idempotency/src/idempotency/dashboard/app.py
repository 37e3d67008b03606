"""The dashboard as an ASGI application: what it reads, what it may change, and for whom."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Final
from urllib.parse import parse_qs, quote, unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idempotency._core.description import state_name
from idempotency._core.errors import IdempotencyError, StoreError
from idempotency._core.key import parse_key, storage_key
from idempotency._core.outcome import Response as Recorded
from idempotency._core.outcome import decode
from idempotency._core.policy import Policy
from idempotency._core.types import Claim, Record, StorageKey, key_id
from idempotency.dashboard import markup
from idempotency.dashboard.audit import AuditEvent, log_audit
from idempotency.dashboard.counts import Counts
from idempotency.dashboard.tokens import COOKIE, FormTokens
from idempotency.store import Inspectable, ManagedStore, Purgeable

__all__ = ["dashboard"]

PAGE_RECORDS: Final = 50
LOOKED_AT: Final = 2_000  # records that one page may read while it looks for those of a tenant or a state
MAX_FORM_BYTES: Final = 16_384
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
        writable: Whether records can be released, forgotten and purged; each after a confirmation.
        counts: Shown, where the middleware of this process has it among its hooks.
        policy: Its `redact` is applied to an answer before it is shown.
        actor: Who asks, for the audit; such as ``lambda request: request.user.display_name``.
        audit: Told of every answer before it is shown, and of every change when it has been made; the log by default.
            What it raises is an error of the page.
        secret: At least 16 bytes, for the tokens in forms; needed where several processes serve one page.
    Raises:
        TypeError: *store* cannot be listed.

    Cost: a list reads at most 2,000 records of the store's own pages a request, also in a store of millions; it goes on
    from where it stopped. Finding a key is one read.
    """
    if not isinstance(store, Inspectable):
        raise TypeError(f"{type(store).__name__} cannot list its records")
    views = _Views(
        store, writable, counts, policy, actor, audit, FormTokens(secret or secrets.token_bytes(32))
    )
    changes = [
        Route("/release", views.release, methods=["POST"]),
        Route("/forget", views.forget, methods=["POST"]),
        Route("/purge", views.purge, methods=["POST"]),
    ]
    return Starlette(
        routes=[
            Route("/", views.index, methods=["GET"]),
            Route("/find", views.find, methods=["GET"]),
            Route("/record", views.record, methods=["GET"]),
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


class _Views:
    def __init__(
        self,
        store: ManagedStore,
        writable: bool,
        counts: Counts | None,
        policy: Policy | None,
        actor: Callable[[Request], str],
        audit: Callable[[AuditEvent], None],
        tokens: FormTokens,
    ) -> None:
        self._store = store
        self._writable = writable
        self._counts = counts
        self._policy = policy or Policy()
        self._actor = actor
        self._audit = audit
        self._tokens = tokens

    async def index(self, request: Request) -> Response:
        """A page of records."""
        root, query = _root(request), _fields(request.url.query)
        tenant, state = query.get("tenant", ""), query.get("state", "")
        found, looked_at, cursor = await self._matching(tenant, state, query.get("cursor"))
        body = [
            markup.search_forms(root, tenant=tenant, state=state),
            markup.records_table(root, found),
            f'<p class="soft">{len(found)} of {looked_at} records looked at.</p>',
        ]
        if cursor is not None:
            body.append(
                f"<p>{markup.link(root + '/', 'Go on', tenant=tenant, state=state, cursor=cursor)}</p>"
            )
        if self._counts is not None:
            body.append(markup.counts_table(self._counts))
        browser = self._tokens.browser(request)
        if self._writable and isinstance(self._store, Purgeable):
            token = {"token": self._tokens.make(browser, "purge")}
            body.append("<h2>Expired records</h2>")
            body.append(
                markup.confirmation(root, "purge", token, "Deletes up to 1,000 expired records.", "Purge")
            )
        return self._page(request, "Idempotency keys", body, browser)

    async def _matching(
        self, tenant: str, state: str, cursor: str | None
    ) -> tuple[list[Record], int, str | None]:
        prefix = storage_key(tenant, "") if tenant else ""
        found: list[Record] = []
        looked_at = 0
        while len(found) < PAGE_RECORDS and looked_at < LOOKED_AT:
            page = await self._store.scan(limit=PAGE_RECORDS, cursor=cursor)
            looked_at += max(len(page.records), 1)  # a page of records that nobody can read is a step as well
            found += [
                record
                for record in page.records
                if record.key.startswith(prefix) and state in {"", state_name(record)}
            ]
            cursor = page.cursor
            if cursor is None:
                break
        return found, looked_at, cursor

    async def find(self, request: Request) -> Response:
        """From a client's key to its record's page."""
        query = _fields(request.url.query)
        key = query.get("key", "").strip()
        try:
            if key.startswith('"'):  # as it stands in the header
                key = parse_key([key.encode()]) or ""
            found = storage_key(query.get("tenant", "").strip(), key)
        except (IdempotencyError, ValueError) as error:
            return self._page(request, "No such key", [f"<p>{markup.text(error)}</p>"], status=400)
        return RedirectResponse(markup.address(_root(request) + "/record", key=found), 303)

    async def record(self, request: Request) -> Response:
        """One record; its answer where it is asked for, and a button for what may be done with it."""
        query = _fields(request.url.query)
        key = StorageKey(query.get("key", ""))
        record = await self._store.get(key)
        if record is None:
            return self._page(
                request, "No such record", ["<p>It never was, is expired, or was released.</p>"], status=404
            )
        root, browser = _root(request), self._tokens.browser(request)
        body = [markup.record_details(record)]
        if record.outcome is not None:
            if query.get("show") == "outcome":
                await self._tell(AuditEvent(
                    action="show-outcome", key_id=key_id(key), actor=self._actor(request), result="done"
                ))  # fmt: skip
                body.append(self._answer(record.outcome))
            else:
                body.append(
                    f"<p>{markup.link(root + '/record', 'Show the answer', key=key, show='outcome')}"
                    ' <span class="soft">(headers and body; this is logged)</span></p>'
                )
        if self._writable:
            body.append(self._button(root, browser, record))
        return self._page(request, record.key, body, browser)

    def _answer(self, outcome: bytes) -> str:
        try:
            decoded = decode(outcome)
        except StoreError as error:
            return f"<p>{markup.text(error)}</p>"
        if not isinstance(decoded, Recorded):
            return '<p class="soft">A function\'s value, or an answer that was not kept.</p>'
        return markup.answer(self._policy.redact(decoded) if self._policy.redact else decoded)

    def _button(self, root: str, browser: str, record: Record) -> str:
        state = state_name(record)
        action = "forget" if state == "completed" else "release"
        seen = record.owner.hex() if action == "release" else ""
        warning = {
            "completed": "Retries are answered from this record. If it is forgotten, the next request runs again.",
            "running": "It is running. If it is released, a second run may begin at once.",
            "abandoned": "Its process is gone or stalled. If it is released, the next request with its key runs.",
        }[state]
        stamp = key_id(StorageKey(seen))  # never the owner's token itself
        fields = {
            "key": quote(record.key, errors="surrogateescape"),  # which may hold what no page can
            "seen": stamp,
            "token": self._tokens.make(browser, action, record.key, stamp),
        }
        return markup.confirmation(root, action, fields, warning, f"{action.capitalize()} this key")

    async def release(self, request: Request) -> Response:
        """Free the key of the run that was shown, and of no other."""
        return await self._change(request, "release", self._released)

    async def _released(self, key: StorageKey, seen: str) -> AuditEvent:
        record = await self._store.get(key)
        if record is None:
            return AuditEvent(action="release", key_id=key_id(key), actor="", result="absent")
        same = key_id(StorageKey(record.owner.hex())) == seen
        claim = Claim(key, record.owner, record.attempt, record.fence)
        done = same and await self._store.release(claim)
        return AuditEvent(
            action="release",
            key_id=key_id(key),
            actor="",
            result="done" if done else "changed",
            count=int(done),
        )

    async def forget(self, request: Request) -> Response:
        """Delete a completed record."""
        return await self._change(request, "forget", self._forgotten)

    async def _forgotten(self, key: StorageKey, _: str) -> AuditEvent:
        done = await self._store.forget(key)
        return AuditEvent(
            action="forget",
            key_id=key_id(key),
            actor="",
            result="done" if done else "absent",
            count=int(done),
        )

    async def _change(
        self, request: Request, action: str, change: Callable[[StorageKey, str], Awaitable[AuditEvent]]
    ) -> Response:
        form = await _form(request)
        key, seen = unquote(form.get("key", ""), errors="surrogateescape"), form.get("seen", "")
        if not self._tokens.fits(request, form.get("token", ""), action, key, seen):
            return self._refused(request)
        return await self._done(request, await change(StorageKey(key), seen))

    async def purge(self, request: Request) -> Response:
        """Delete expired records, one batch."""
        form = await _form(request)
        if not self._tokens.fits(request, form.get("token", ""), "purge"):
            return self._refused(request)
        assert isinstance(self._store, Purgeable)
        count = await self._store.purge()
        return await self._done(
            request, AuditEvent(action="purge", key_id="", actor="", result="done", count=count)
        )

    def _refused(self, request: Request) -> Response:
        return self._page(
            request, "Not done", ["<p>The form is not of this page. Open it again.</p>"], status=403
        )

    async def _done(self, request: Request, event: AuditEvent) -> Response:
        await self._tell(
            AuditEvent(
                action=event.action,
                key_id=event.key_id,
                actor=self._actor(request),
                result=event.result,
                count=event.count,
            )
        )
        said = {
            "done": f"Done: {event.action}, {event.count} record{'' if event.count == 1 else 's'}.",
            "changed": "Not done: the record changed after it was shown. Look again.",
            "absent": "Not done: there is no such record any more.",
        }[event.result]
        return self._page(
            request, said.partition(":")[0], [f"<p>{said}</p>"], status=200 if event.result == "done" else 409
        )

    async def _tell(self, event: AuditEvent) -> None:
        await run_in_threadpool(self._audit, event)  # it may write to a database

    def _page(
        self, request: Request, title: str, body: list[str], browser: str | None = None, *, status: int = 200
    ) -> Response:
        response = HTMLResponse(markup.page(_root(request), title, body), status)
        if self._writable and browser is not None and request.cookies.get(COOKIE) != browser:
            response.set_cookie(
                COOKIE,
                browser,
                path=_root(request) or "/",
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return response


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")


async def _form(request: Request) -> dict[str, str]:
    """The fields of a short form; nothing where it is too long or of another kind."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        return {}
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    return _fields(body.decode("ascii", "replace"))


def _fields(encoded: str) -> dict[str, str]:
    """The first value of each field; bytes that are no UTF-8 are kept as surrogates, as the names of keys are."""
    try:
        fields = parse_qs(encoded, errors="surrogateescape", max_num_fields=10)
    except ValueError:  # more fields than any form of ours has
        return {}
    return {name: values[0] for name, values in fields.items()}
