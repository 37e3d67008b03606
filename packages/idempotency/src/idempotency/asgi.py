"""
The ASGI middleware: read the request, let the engine decide, run the application once, record, then send.

Raw ASGI, so that whatever does not concern it (other types of scope, other methods, requests without a key) passes
untouched and unbuffered. A request's state lives in its `_Exchange`, that of a run in its `_Execution`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, Final, TypeAlias

from idempotency._context import active
from idempotency._core.decide import Refuse, Replay, settle
from idempotency._core.errors import (
    CorruptRecord,
    IdempotencyError,
    MissingKey,
    MissingTenant,
    NotReplayable,
    RequestTimeout,
    RequestTooLarge,
)
from idempotency._core.fingerprint import RequestView, operation_digest
from idempotency._core.key import parse_key, storage_key
from idempotency._core.machine import Recorded, Superseded
from idempotency._core.outcome import (
    Headers,
    Response,
    Unreplayable,
    decode,
    encode_response,
    encode_unreplayable,
    recorded_headers,
    replay_headers,
)
from idempotency._core.policy import Policy
from idempotency._core.problem import handler_failed, problem
from idempotency._core.types import Completed, StorageKey, key_id
from idempotency._eager import within
from idempotency._runtime import Signal, Timer, running
from idempotency.engine import Ask, Engine, Run
from idempotency.events import Hook, Refused, Replayed
from idempotency.store import Store

__all__ = ["EXPOSED_HEADERS", "IdempotencyMiddleware", "by_header", "one_tenant"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

EXPOSED_HEADERS: Final = (
    "Idempotency-Replayed",
    "Idempotency-Age",
    "Idempotency-Expires-In",
    "Retry-After",
    "Link",
)
"""For `expose_headers` of a CORS middleware: what this one adds for clients to read."""

_AGE, _EXPIRES_IN = b"idempotency-age", b"idempotency-expires-in"
_OURS = frozenset({b"idempotency-replayed", _AGE, _EXPIRES_IN})

# Ways for a body to reach the client without passing here (E6).
_BYPASSING_EXTENSIONS = frozenset(
    {
        "http.response.early_hint",
        "http.response.pathsend",
        "http.response.push",
        "http.response.trailers",
        "http.response.zerocopysend",
    }
)
_PREFER_WAIT = re.compile(rb"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)

_log = logging.getLogger("idempotency")


def by_header(name: str) -> Callable[[Scope], str]:
    """
    A tenant for each value of a request header, such as `Authorization`: hashed, so that no secret reaches the store.

    Use it for a header that was authenticated. A keyed request without the header is refused (400): strangers must
    not share a tenant. Repeated header lines count together.

    >>> tenant = by_header("Authorization")
    >>> alice = tenant({"headers": [(b"authorization", b"Bearer alice")]})
    >>> bob = tenant({"headers": [(b"authorization", b"Bearer bob")]})
    >>> alice == bob
    False
    """
    wanted = name.lower().encode("ascii")

    def tenant(scope: Scope) -> str:
        values = [value for header, value in scope["headers"] if header == wanted]
        if not values:
            raise MissingTenant(f"the request has no {name} header, which says whose Idempotency-Key this is")
        return sha256(b"\n".join(values)).hexdigest()[:32]

    return tenant


def one_tenant() -> Callable[[Scope], str]:
    """Everybody is the same principal: right for one trusted caller, a leak between users otherwise."""
    return lambda _scope: ""


class IdempotencyMiddleware:
    """
    One effect per Idempotency-Key, for any ASGI application, after draft-ietf-httpapi-idempotency-key-header-07.

    The application runs to its end once per key whatever the client's connection does; its answer is recorded before
    the first byte leaves (E1), and repeated to every retry.

    Args:
        app: The application to protect.
        store: Where records live, such as `idempotency.stores.redis.RedisStore`.
        tenant: Whose key it is, from the scope: `by_header("Authorization")`, or what an authentication middleware
            outside this one left there. It has no default: a replay across principals is a leak. It may raise an
            `IdempotencyError` to refuse; anything else it raises, or returns but a string, is a 500.
        policy: What is promised; or a callable that gives the policy for a scope, None to leave it alone.
        hooks: Called with every event (`idempotency.events`).
    Raises:
        TypeError: *tenant* or *policy* is not callable.

    Cost: one store call for a replay, two for a first run, and one for every lease/3 that it lasts.
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
        if not callable(tenant):
            raise TypeError('tenant must be a callable, such as by_header("Authorization") or one_tenant()')
        if not isinstance(policy, Policy) and not callable(policy):
            raise TypeError("policy must be a Policy or a callable that gives one for a scope")
        self.app = app
        self.engine = Engine(store, hooks=hooks)
        self.tenant = tenant
        self._policy = policy
        promise = policy.promise if isinstance(policy, Policy) else "set by each route's policy"
        _log.info("idempotency: %s, in %s", promise, type(store).__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI 3)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        policy = self._policy if isinstance(self._policy, Policy) else self._policy(scope)
        if policy is None or scope["method"] not in policy.methods:
            return await self.app(scope, receive, send)
        lines = [value for name, value in scope["headers"] if name == b"idempotency-key"]
        if not lines and not policy.required:
            return await self.app(scope, receive, send)
        return await _Exchange(self, policy, scope, receive, send).serve(lines)


class _Exchange:
    """One keyed request on its way to an answer."""

    __slots__ = ("_middleware", "_receive", "engine", "key", "policy", "scope", "send")

    def __init__(
        self, middleware: IdempotencyMiddleware, policy: Policy, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._middleware = middleware
        self._receive = receive
        self.engine = middleware.engine
        self.policy = policy
        self.scope = scope
        self.send = send
        self.key: StorageKey | None = None

    async def serve(self, lines: list[bytes]) -> None:
        """Guard, read, decide, act."""
        policy, scope, app = self.policy, self.scope, self._middleware.app
        try:
            key = parse_key(lines, max_chars=policy.max_key_chars, strict=policy.strict_keys)
            if key is None:
                raise MissingKey
            tenant = self._middleware.tenant(scope)
            if not isinstance(tenant, str):
                raise TypeError(f"the tenant callable must return a str, not {type(tenant).__name__}")
            self.key = storage_key(tenant, key)
            outer = active.get()
            if outer is not None and outer.key == self.key:
                return await app(scope, self._receive, self.send)  # a claim covers it already (E10)
            body = await within(policy.body_timeout, self._read_body())
        except TimeoutError:
            return await self.refuse(RequestTimeout(seconds=policy.body_timeout))
        except IdempotencyError as error:
            return await self.refuse(error)
        if body is None:
            return None  # the client left before its request was whole: nothing was claimed, nothing runs
        method, path = scope["method"], _full_path(scope)
        view = RequestView(method, path, scope.get("query_string", b""), scope["headers"], body, tenant)
        fingerprint = operation_digest(view, policy.fingerprint)
        wait = policy.wait if policy.prefer_wait <= 0 else self._preferred_wait()
        verdict = await self.engine.begin(Ask(self.key, fingerprint, policy, f"{method} {path}", wait))
        if isinstance(verdict, Run):
            await _Execution(self, verdict, body, self._receive).of(app)
        elif isinstance(verdict, Replay):
            await self.replay(verdict.completed, verdict.waited)
        elif isinstance(verdict, Refuse):
            await self.refuse(verdict.error)
        else:
            await app(scope, _body_first(body, self._receive), self.send)
        return None

    async def _read_body(self) -> bytes | None:
        limit, size = self.policy.max_request_bytes, 0
        chunks: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise RequestTooLarge(limit=limit)
            if not message.get("more_body", False):
                return b"".join((*chunks, chunk)) if chunks else bytes(chunk)
            if not chunks and _declared_length(self.scope) > limit:
                raise RequestTooLarge(limit=limit)  # before the rest of it is read
            chunks.append(chunk)

    def _preferred_wait(self) -> float:
        for name, value in self.scope["headers"]:
            if name == b"prefer" and (preferred := _PREFER_WAIT.search(value)):
                return min(float(preferred[1]), self.policy.prefer_wait)
        return self.policy.wait

    # Answers that are not the application's.

    async def replay(self, completed: Completed, waited: float) -> None:
        """Send the recorded answer, marked as a replay; or the problem that stands in its way."""
        assert self.key is not None
        try:
            outcome = decode(completed.outcome)
            if isinstance(outcome, Unreplayable):
                raise NotReplayable(key_id=key_id(self.key), reason=outcome.reason)
            if not isinstance(outcome, Response):
                raise CorruptRecord(
                    "the record is a function's value, not a response: two users share its key"
                )
        except IdempotencyError as error:
            return await self.refuse(error)
        headers = replay_headers(outcome)
        headers += (
            (self.policy.replay_header.lower().encode("ascii"), b"true"),
            (_AGE, b"%d" % completed.age),
            (_EXPIRES_IN, b"%d" % completed.expires_in),
        )
        if self.engine.hooks:
            self.engine.emit(
                Replayed(
                    operation=self._operation(),
                    key_id=key_id(self.key),
                    age=completed.age,
                    waited=waited,
                    traceparent=outcome.traceparent,
                )
            )
        return await self._send_response(outcome.status, headers, outcome.body)

    async def refuse(self, error: IdempotencyError) -> None:
        """Send the problem document of *error*."""
        if self.engine.hooks:
            self.engine.emit(
                Refused(
                    operation=self._operation(),
                    key_id=None if self.key is None else key_id(self.key),
                    problem=error.slug,
                    status=error.status,
                )
            )
        answer = problem(error, documentation_url=self.policy.documentation_url)
        if isinstance(error, RequestTooLarge | RequestTimeout) and not self._is_http2():
            answer.headers.append((b"connection", b"close"))  # the rest of the body is never read
        await self._send_response(answer.status, answer.headers, answer.body)

    async def _send_response(self, status: int, headers: Headers, body: bytes) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        if self.scope["method"] == "HEAD":
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    def _is_http2(self) -> bool:
        """Whether Connection has no meaning and may not be sent (RFC 9113, 8.2.2; RFC 9114, 4.2)."""
        return str(self.scope.get("http_version", "1.1")).startswith(("2", "3"))

    def _operation(self) -> str:
        return f"{self.scope['method']} {_full_path(self.scope)}"


class _Execution:
    """
    The application's one run under a claim, and its answer: held back until the record is made (E1).

    Three states: holding back (`_run` is set), recorded (`_flowing`: what the application sends goes straight out),
    or answered otherwise (`_swallowing`: the record of a successor went out in its place, E8).
    """

    __slots__ = (
        "_body",
        "_chunks",
        "_exchange",
        "_flowing",
        "_hold",
        "_lock",
        "_receive",
        "_recorded",
        "_run",
        "_scope",
        "_size",
        "_start",
        "_swallowing",
    )

    def __init__(self, exchange: _Exchange, run: Run, body: bytes, receive: Receive) -> None:
        self._exchange = exchange
        self._scope = _without_bypasses(exchange.scope)
        self._receive = receive
        self._run: Run | None = run  # until it is settled
        self._body: bytes | None = body  # until the application has read it
        self._start: Message | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._flowing = self._swallowing = False
        self._recorded: Signal | None = None  # only where the application waits for a disconnect
        self._hold: Timer | None = None
        self._lock: Any = None  # only once the answer is a stream: then the hold's timer is a second writer

    async def of(self, app: ASGIApp) -> None:
        """Run *app* to its end, whatever the client's connection does."""
        assert self._run is not None
        token = active.set(self._run.claim)
        try:
            await app(self._scope, self._receive_inner, self._send_inner)
        except Exception:
            await self._fail()
            raise
        except BaseException:
            if self._run is not None:
                self._take_run().abandon()  # cancelled: the outcome is unknown, the lease decides (E4)
            raise
        else:
            if self._run is not None:
                await self._end_incomplete()
        finally:
            active.reset(token)

    async def _receive_inner(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not (self._flowing or self._swallowing):  # no disconnect is seen until the record is made (E5)
            if self._recorded is None:
                self._recorded = running().signal()
            await self._recorded.wait()
        return await self._receive()

    async def _send_inner(self, message: Message) -> None:
        if self._lock is not None:
            async with self._lock:
                await (self._exchange.send if self._flowing else self._hold_back)(message)
        elif self._flowing:
            await self._exchange.send(message)
        else:
            await self._hold_back(message)

    async def _hold_back(self, message: Message) -> None:
        if self._swallowing:
            return
        kind = message["type"]
        if kind == "http.response.start":
            headers = message.get("headers")
            if type(headers) is not list:  # any iterable is allowed, and here it is read more than once
                message = {**message, "headers": list(headers or ())}
            self._start = message
            if _is_event_stream(message):
                await self._let_flow("an event stream")
        elif kind == "http.response.body" and self._start is not None:
            chunk = message.get("body", b"")
            self._chunks.append(chunk)
            self._size += len(chunk)
            if self._size > self._exchange.policy.max_response_bytes:
                await self._let_flow(f"larger than {self._exchange.policy.max_response_bytes} bytes")
            elif not message.get("more_body", False):
                await self._finish()
            elif self._hold is None:
                runtime = running()
                self._lock = runtime.lock()
                self._hold = runtime.after(self._exchange.policy.max_hold, self._end_hold)
        else:
            await self._exchange.send(message)

    async def _finish(self) -> None:
        """The answer is whole: record it, then send it (E1)."""
        assert self._start is not None
        policy, engine = self._exchange.policy, self._exchange.engine
        status: int = self._start["status"]
        if not self._is_kept(status):
            await self._take_run().release()
            return await self._send_own()
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        drop = _never_recorded(policy.drop_headers, policy.replay_header)
        headers = recorded_headers(self._start.get("headers", ()), drop=drop, length=len(body))
        response = Response(status, headers, bytes(body), engine.traceparent() if engine.hooks else None)
        if policy.redact is not None:
            response = policy.redact(response)
        return await self._record(encode_response(response), whole=True)

    async def _end_hold(self) -> None:
        async with self._lock:
            if self._run is not None:
                await self._let_flow(f"still streaming after {self._exchange.policy.max_hold:g} s")

    async def _let_flow(self, reason: str) -> None:
        """The answer cannot be kept: say so in the record, then let it go (E2)."""
        assert self._start is not None
        status: int = self._start["status"]
        if self._is_kept(status):
            await self._record(encode_unreplayable(reason, status), whole=False)
        else:
            await self._take_run().release()
            await self._send_own(more_body=True)

    async def _record(self, outcome: bytes, *, whole: bool) -> None:
        ending = await self._take_run().keep(outcome, result="kept" if whole else "unreplayable")
        if isinstance(ending, Superseded):
            self._swallow()
            await self._exchange.replay(ending.completed, 0.0)
        elif isinstance(ending, Refuse):
            self._swallow()
            await self._exchange.refuse(ending.error)
        else:
            await self._send_own(stored=isinstance(ending, Recorded) and whole, more_body=not whole)

    async def _send_own(self, *, stored: bool = False, more_body: bool = False) -> None:
        """Send what was held back, and from now on everything at once."""
        start, send = self._start, self._exchange.send
        assert start is not None
        self._flowing = True
        self._let_disconnects_pass()
        headers = list(start.get("headers", ()))
        ours = _ours(self._exchange.policy.replay_header)  # an application does not speak for us
        if not ours.isdisjoint([name.lower() for name, _ in headers]):
            headers = [pair for pair in headers if pair[0].lower() not in ours]
        if stored:
            headers.append((_EXPIRES_IN, b"%d" % self._exchange.policy.retention))
        await send({**start, "headers": headers})
        chunks, self._chunks = self._chunks, []
        last = len(chunks) - 1
        for index, chunk in enumerate(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": more_body or index < last})

    async def _fail(self) -> None:
        """The handler raised: free the key or record that it failed; the exception goes on to the server."""
        if self._run is None:
            return
        run, policy = self._take_run(), self._exchange.policy
        if policy.on_exception == "keep":
            await run.keep(encode_response(handler_failed(policy.documentation_url)))
        else:
            await run.release()

    async def _end_incomplete(self) -> None:
        """The handler returned without a whole answer: to the key an exception, to the server a broken answer."""
        await self._fail()
        if self._start is not None:
            await self._send_own(more_body=True)

    def _take_run(self) -> Run:
        run, self._run = self._run, None
        assert run is not None
        if self._hold is not None:
            self._hold.cancel()
        return run

    def _is_kept(self, status: int) -> bool:
        # Starlette's router leaves its mark on the scope, and the endpoint's once a route matched.
        routed = "endpoint" in self._scope or "router" not in self._scope
        return settle(status, policy=self._exchange.policy, routed=routed) == "keep"

    def _swallow(self) -> None:
        self._swallowing = True
        self._let_disconnects_pass()

    def _let_disconnects_pass(self) -> None:
        if self._recorded is not None:
            self._recorded.set()


def _body_first(body: bytes, receive: Receive) -> Receive:
    """*receive*, but for a body that was read from it already."""
    pending = [body]

    async def receive_again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_again


def _full_path(scope: Scope) -> str:
    """The path as the client sent it; a mounted application's prefix is part of it whatever the mount did to `path`."""
    root: str = scope.get("root_path", "")
    raw: bytes = scope.get("raw_path") or b""
    path: str = raw.partition(b"?")[0].decode("latin-1") if raw else scope["path"]
    return path if path.startswith(root) else root + path


def _without_bypasses(scope: Scope) -> Scope:
    extensions = scope.get("extensions")
    if not extensions or _BYPASSING_EXTENSIONS.isdisjoint(extensions):
        return scope
    kept = {name: value for name, value in extensions.items() if name not in _BYPASSING_EXTENSIONS}
    return {**scope, "extensions": kept}


def _is_event_stream(start: Message) -> bool:
    for name, value in start.get("headers", ()):
        if name == b"content-type":
            return bool(value[:17].lower() == b"text/event-stream")
    return False


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


@cache
def _ours(replay_header: str) -> frozenset[bytes]:
    return _OURS | {replay_header.lower().encode("ascii")}


@cache
def _never_recorded(drop_headers: frozenset[bytes], replay_header: str) -> frozenset[bytes]:
    return drop_headers | _ours(replay_header)
