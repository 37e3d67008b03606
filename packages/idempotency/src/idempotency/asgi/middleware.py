"""
The ASGI middleware: reads the request, asks the engine, runs the application once, records, then sends.

It uses raw ASGI, so that everything else (other scope types, other methods, requests without a key) passes untouched
and unbuffered. `_RequestHandler` holds the state of a request, `ResponseRecorder` the state of a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from idempotency._core.actions import Refuse, Replay
from idempotency._core.callables import is_plain
from idempotency._core.errors import (
    BodyLost,
    IdempotencyError,
    RequestTimeout,
    RequestTooLarge,
)
from idempotency._core.fingerprint import (
    RequestView,
    counted_query,
    exact_bytes,
    exact_operation_digest,
    operation_digest,
    representation,
    unrepeated_representation,
)
from idempotency._core.key import key_lines, parse_key_fields, parse_line, storage_key
from idempotency._core.outcome import Headers
from idempotency._core.policy import Policy
from idempotency._core.printable import printable
from idempotency._core.replay import replay_answer
from idempotency._core.types import Completed, Fingerprint, StorageKey, key_id
from idempotency._http.keyed_request import missing_key
from idempotency._http.prefer import preferred_wait
from idempotency._http.refusal import refusal
from idempotency._runtime.event_loop import running
from idempotency._runtime.poll_once import poll_once
from idempotency.asgi.before_handler import watch_frameworks
from idempotency.asgi.litestar_hooks import LITESTAR, warn_of_hooks
from idempotency.asgi.recorder import ResponseRecorder
from idempotency.asgi.request_body import (
    RequestBody,
    drop_announced_trailers,
    drop_late_trailers,
    is_still_sent,
    require_body,
)
from idempotency.asgi.scope import RUNS, is_http2, is_of_another_run, joined_run
from idempotency.asgi.tenants import by_header, by_user, one_tenant
from idempotency.asgi.types import ASGIApp, Message, Receive, Scope, Send
from idempotency.engine import Engine
from idempotency.engine.checks import is_async_store
from idempotency.engine.current_claim import active, joined, outside
from idempotency.engine.overrides import overrides
from idempotency.engine.run import Run
from idempotency.events import Hook, Refused, Replayed
from idempotency.store import Store

__all__ = ["EXPOSED_HEADERS", "IdempotencyMiddleware"]


EXPOSED_HEADERS: Final = (
    "Idempotency-Replayed",
    "Idempotency-Age",
    "Idempotency-Expires-In",
    "Retry-After",
    "Link",
)
"""The headers that this middleware adds, for `expose_headers` of a CORS middleware. Add your own `replay_header`."""

_log = logging.getLogger("idempotency")
_innermost = active.get


# Functions that return a tenant callable; passing one of them itself, uncalled, is a mistake.
_FACTORIES: Final[tuple[object, ...]] = (by_header, by_user, one_tenant)


class IdempotencyMiddleware:
    """
    One effect per Idempotency-Key, for any ASGI application, after draft-ietf-httpapi-idempotency-key-header-07.

    The application runs to its end once per key, even if the client disconnects. Its answer is recorded before the
    first byte is sent (E1), and every retry gets the recorded answer.

    Args:
        app: The application to protect.
        store: Where records are kept, such as `idempotency.stores.redis.RedisStore`.
        tenant: A callable that takes the scope and returns whose key it is. `by_user()` reads the user that an
            authentication middleware outside this one put into the scope. Your own callable should return the verified
            user or account, never a credential, because credentials are replaced. There is no default: a replay to
            another user would be a leak. The callable may raise an `IdempotencyError`, such as `MissingTenant`, to
            refuse the request; any other exception, or a value that is not a string, gives a 500. All requests for
            which it returns "" share one tenant (`one_tenant`).
        policy: The policy; or a callable that takes the scope and returns a policy, or None for no protection.
        hooks: Called with every event (`idempotency.events`).
    Raises:
        TypeError: *store*, *tenant*, *policy* or a hook has the wrong type.

    Cost: one store call for a replay, two for a first run, and one more for every lease/3 that a run lasts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        tenant: Callable[[Scope], str],
        policy: Policy | Callable[[Scope], Policy | None] = Policy(),  # noqa: B008
        hooks: Sequence[Hook] = (),
    ) -> None:
        if isinstance(store, type) or not is_async_store(store):
            raise TypeError(
                f"store must be a Store, such as MemoryStore(), not this {type(store).__name__}; "
                "open_store() makes one from a URL"
            )
        if not is_plain(tenant) or tenant in _FACTORIES:
            raise TypeError(
                "tenant must be a plain function of the scope, such as by_user() or one_tenant(); "
                "if it needs an await, do that in a middleware outside this one and leave the result in the scope"
            )
        if not isinstance(policy, Policy) and not is_plain(policy):
            raise TypeError("policy must be a Policy, or a plain function that takes a scope and returns one")
        watch_frameworks(app)
        self.app = app
        self.engine: Engine = Engine(store, hooks=hooks)
        self.tenant = tenant
        self._policy: Policy | None = policy if isinstance(policy, Policy) else None
        self._policy_of: Callable[[Scope], Policy | None] | None = (
            None if isinstance(policy, Policy) else policy
        )
        promise = policy.promise if isinstance(policy, Policy) else "set by each route's policy"
        _log.info("idempotency: %s, in %s", promise, type(store).__name__)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection (ASGI 3)."""
        if _innermost() is not None and is_of_another_run(scope):
            with outside():
                return await self(scope, receive, send)
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        policy = self._policy
        if policy is None and self._policy_of is not None:
            policy = self._policy_of(scope)
        if policy is None or scope["method"] not in policy.methods:
            return await self.app(scope, receive, send)
        key_names = policy.key_names
        for name, _ in scope["headers"]:
            if name in key_names:
                break
        else:
            if not policy.required:
                return await self.app(scope, receive, send)
        if overrides.off:
            return await self.app(scope, receive, send)
        if LITESTAR in scope:
            warn_of_hooks(scope)
        return await _RequestHandler(self, policy, scope, receive, send).serve()


class _RequestHandler:
    """Handles one keyed request; implements `OperationRequest` for the engine and `RequestHandler` for the recorder."""

    __slots__ = (
        "_body",
        "_middleware",
        "_receive",
        "engine",
        "fingerprint",
        "key",
        "path",
        "policy",
        "scope",
        "send",
        "wait",
    )

    key: StorageKey
    fingerprint: Fingerprint
    wait: float

    def __init__(
        self, middleware: IdempotencyMiddleware, policy: Policy, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._middleware = middleware
        self._receive = receive
        self._body: RequestBody | None = None
        self.engine = middleware.engine
        self.path = full_path(scope)
        self.policy = policy
        self.scope = scope
        self.send = send

    async def serve(self) -> None:
        """Check the request, read it, ask the engine and act on the verdict."""
        # One long function, because it runs for every replay, where each further call costs time.
        policy, scope, middleware = self.policy, self.scope, self._middleware

        # The key, and whose it is.
        headers = scope["headers"]
        fields = dict(headers)
        if len(fields) == len(headers):
            line = fields.get(policy.only_key_name)
            content_type, content_encoding, declared = unrepeated_representation(fields)
        else:  # a name is repeated: all lines have to be looked at
            line = None
            content_type, content_encoding, declared = representation(headers)
        try:
            if not declared and b"trailer" in fields:  # a request with a Content-Length cannot have trailers
                drop_announced_trailers(scope, policy.key_fields)
            if line is not None:
                key = parse_line(line, policy.max_key_chars, policy.strict_keys, policy.key_headers[0])
            else:
                key = _key_of_many_lines(headers, policy)
            tenant = middleware.tenant(scope)
            if not isinstance(tenant, str):
                raise TypeError(f"the tenant callable must return a str, not {type(tenant).__name__}")
            self.key = storage_key(tenant, key)
        except IdempotencyError as error:
            return await self._refuse_unread(error, declared, named=False)
        if RUNS in scope and (joins := joined_run(scope, self.key)) is not None:
            with joined(joins):  # this request already has a claim of this key (E10)
                return await middleware.app(scope, self._receive, self.send)

        # The body.
        headers = scope["headers"]  # perhaps another list now, without trailers
        header_count = len(headers)
        try:
            # Before reading, which makes a server send 100 (Continue).
            if declared > policy.max_request_bytes:
                raise RequestTooLarge(limit=policy.max_request_bytes)
            arrived, message = poll_once(self._receive())
            if arrived and message["type"] == "http.request" and not message.get("more_body", False):
                body = message.get("body", b"")
                if type(body) is not bytes:
                    body = bytes(body)  # a server may pass a view of its buffer
                if len(body) > policy.max_request_bytes:
                    return await self.refuse(RequestTooLarge(limit=policy.max_request_bytes))
            else:
                self._body = RequestBody(self._receive, policy)
                read = partial(self._body.read, arrived, message)
                body = await running().within(policy.body_timeout, read)
                if body is None:
                    # The client left before the end of its body: nothing was claimed, nothing runs.
                    return None
            if not body:
                require_body(scope, declared)
        except TimeoutError:
            return await self.refuse(RequestTimeout(seconds=policy.body_timeout))
        except RequestTooLarge as error:
            return await self._refuse_unread(error, declared)
        except BodyLost as error:
            return await self.refuse(error)
        if len(headers) != header_count:
            drop_late_trailers(headers, header_count)

        # The fingerprint.
        method, path, query = scope["method"], self.path, scope.get("query_string", b"")
        if policy.fingerprint is exact_bytes:
            if policy.ignored_query:
                query = counted_query(query, policy.ignored_query)
            self.fingerprint = exact_operation_digest(
                method, path, query, content_type, content_encoding, body
            )
        else:
            view = RequestView(method, path, query, headers, body, tenant)
            self.fingerprint = operation_digest(view, policy.fingerprint, ignored_query=policy.ignored_query)

        # The verdict.
        self.wait = policy.wait
        if policy.prefer_wait > 0:
            lines = (value for name, value in scope["headers"] if name == b"prefer")
            self.wait = preferred_wait(lines, policy)
        verdict = await self.engine.begin(self)
        if isinstance(verdict, Run):
            await ResponseRecorder(self, verdict, body, self._receive).run(middleware.app)
        elif isinstance(verdict, Replay):
            await self.replay(verdict.completed, verdict.waited)
        elif isinstance(verdict, Refuse):
            await self.refuse(verdict.error)
        else:
            await middleware.app(scope, _body_first(body, self._receive), self.send)
        return None

    @property
    def operation(self) -> str:
        """The name of the operation in events, escaped so that a path cannot forge log lines."""
        return printable(f"{self.scope['method']} {self.path}")

    # Answers that the library gives instead of the application.

    async def replay(self, completed: Completed, waited: float) -> None:
        """Send the recorded answer, marked as a replay; a problem document if it cannot be replayed."""
        try:
            answer = replay_answer(completed, key=self.key, policy=self.policy)
        except IdempotencyError as error:
            return await self.refuse(error)
        if self.engine.hooks:
            self.engine.emit(
                Replayed(
                    operation=self.operation,
                    key_id=key_id(self.key),
                    age=completed.age,
                    waited=waited,
                    traceparent=answer.traceparent,
                )
            )
        status, headers, body, _ = answer
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        if self.scope["method"] == "HEAD":
            body = b""
        return await self.send({"type": "http.response.body", "body": body})

    async def _refuse_unread(self, error: IdempotencyError, declared: int, *, named: bool = True) -> None:
        """
        Refuse a request whose body was not read to its end.

        If the client may still be sending, the rest is read and dropped; otherwise the client could see a connection
        reset instead of the refusal.
        """
        asked = isinstance(error, RequestTooLarge) and declared <= self.policy.max_request_bytes
        if is_still_sent(self.scope, asked=asked):
            body = self._body or RequestBody(self._receive, self.policy)
            await self.refuse(error, named=named, body=body)
        else:
            await self.refuse(error, named=named)

    async def refuse(
        self, error: IdempotencyError, *, named: bool = True, body: RequestBody | None = None
    ) -> None:
        """
        Send the problem document of *error*.

        Args:
            named: False if the key could not be read.
            body: The unread body, to be discarded before the answer ends, when the server closes the connection.
        """
        if self.engine.hooks:
            self.engine.emit(
                Refused(
                    operation=self.operation,
                    key_id=key_id(self.key) if named else None,
                    problem=error.slug,
                    status=error.status,
                )
            )
        answer = refusal(error, self.policy)
        if isinstance(error, RequestTooLarge | RequestTimeout) and not is_http2(self.scope):
            # The application never reads the rest of the body.
            answer.headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        document = b"" if self.scope["method"] == "HEAD" else answer.body
        if body is not None:
            await self.send({"type": "http.response.body", "body": document, "more_body": True})
            await body.discard()
            document = b""
        await self.send({"type": "http.response.body", "body": document})


def _key_of_many_lines(headers: Headers, policy: Policy) -> str:
    """The key of a request that repeats a header, may carry the key in several headers, or lacks it."""
    lines = key_lines(headers, policy.key_fields)
    key = parse_key_fields(lines, max_chars=policy.max_key_chars, strict=policy.strict_keys)
    if key is None:
        raise missing_key(policy)
    return key


def _body_first(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first gives *body*, which was already read, and then calls *receive*."""
    pending = [body]

    async def receive_again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_again


def full_path(scope: Scope) -> str:
    """The path as the client sent it, with the prefix of a mounted application, which some mounts remove."""
    raw: bytes | None = scope.get("raw_path")
    path: str = raw.decode("latin-1") if raw else scope["path"]
    if raw and "?" in path:
        path = path.partition("?")[0]
    root: str = scope.get("root_path", "")
    return path if not root or path.startswith(root) else root + path
