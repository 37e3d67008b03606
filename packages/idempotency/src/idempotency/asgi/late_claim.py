"""
Claims the key inside the application, just before its handler runs, instead of in a middleware.

A framework authenticates and validates inside the application, where a middleware outside cannot see it. So `LateClaim`
runs the application, copies the body while the application reads it, and waits for `claim`. Until then everything
passes through: an answer before the claim leaves the key free and makes no store call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from idempotency._core.errors import (
    Answered,
    IdempotencyError,
    IncompleteRequest,
    RequestTimeout,
    RequestTooLarge,
)
from idempotency._core.fingerprint import RequestView
from idempotency._core.outcome import Headers, Response
from idempotency._core.policy import Policy
from idempotency._core.types import Completed, StorageKey
from idempotency._http.keyed_request import KeyedRequest, require_known_headers
from idempotency._http.origin_headers import with_origin_of
from idempotency._runtime.event_loop import running
from idempotency.asgi.answered import answered, is_answered
from idempotency.asgi.before_handler import watch_frameworks
from idempotency.asgi.litestar_hooks import LITESTAR, warn_of_hooks
from idempotency.asgi.middleware import full_path
from idempotency.asgi.recorder import ResponseRecorder
from idempotency.asgi.request_body import RequestBody, is_still_sent
from idempotency.asgi.scope import Hidden, hide_bypasses, joined_run, restore
from idempotency.asgi.types import ASGIApp, Message, Receive, Scope, Send
from idempotency.engine import Engine
from idempotency.engine.checks import is_async_store
from idempotency.engine.current_claim import Frame
from idempotency.engine.run import Run
from idempotency.events import Hook
from idempotency.store import Store

__all__ = ["LateClaim", "PendingClaim", "claim", "pending_claim"]

_PENDING: Final = "idempotency.pending"


class LateClaim:
    """
    Runs an ASGI application that makes its own claims: see `claim`, and `idempotency.fastapi`.

    Args:
        app: The application; it calls `claim` in each handler to protect.
        store: Where records are kept, such as `idempotency.stores.redis.RedisStore`.
        hooks: Called with every event (`idempotency.events`).
        max_request_bytes: The longest body that is copied for a claim; the policy, known later, may allow less.
        key_headers: The headers that may carry a key under any policy; the body is copied if one of them is present.
    Raises:
        TypeError: *store* or a hook has the wrong type.

    Cost: almost none without a key; with a key the same as `IdempotencyMiddleware`, from the claim on.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        hooks: Sequence[Hook] = (),
        max_request_bytes: int = 1_048_576,
        key_headers: Iterable[str] = ("Idempotency-Key",),
    ) -> None:
        if isinstance(store, type) or not hasattr(store, "acquire") or not is_async_store(store):
            raise TypeError(
                f"store must be a Store, such as MemoryStore(), not this {type(store).__name__}; "
                "open_store() makes one from a URL"
            )
        watch_frameworks(app)
        self.app = app
        self.engine: Engine = Engine(store, hooks=hooks)
        self.max_request_bytes = max_request_bytes
        self.key_names: frozenset[bytes] = frozenset(name.lower().encode("ascii") for name in key_headers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection (ASGI 3)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        keyed = any(name in self.key_names for name, _ in scope["headers"])
        if keyed and LITESTAR in scope:
            warn_of_hooks(scope)
        pending = PendingClaim(self, scope, receive, send, keyed)
        outer = scope.get(_PENDING)
        scope[_PENDING] = pending
        try:
            await pending.serve(self.app)
        finally:
            if outer is None:
                scope.pop(_PENDING, None)
            else:
                scope[_PENDING] = outer
        return None


async def claim(
    scope: Mapping[str, Any],
    principal: str | Callable[[], str],
    policy: Policy = Policy(),  # noqa: B008
) -> None:
    """
    Claim the current request, inside `LateClaim`; call it just before the handler's first effect.

    It returns if the handler should run: under a claim, or without one if the request has no key and needs none.

    Args:
        scope: The scope of the request, such as `request.scope`.
        principal: Whose key it is: a verified subject, such as a user's id; never a credential, which can change. Or a
            function that returns it, called only if the request has a key.
    Raises:
        Answered: The request already has its answer, a replay or a problem. Do not catch it.
        RuntimeError: The request did not come through `LateClaim`, was claimed before, or its answer has begun: going
            on would run it without protection.
    """
    await pending_claim(scope).claim(principal, policy)


def pending_claim(scope: Mapping[str, Any]) -> PendingClaim:
    """
    The pending claim that `LateClaim` put into the scope.

    Raises:
        RuntimeError: The request did not come through `LateClaim`.
    """
    pending = scope.get(_PENDING)
    if not isinstance(pending, PendingClaim):
        raise RuntimeError(
            "this request did not come through idempotency.asgi.LateClaim: add it to the application's middleware "
            "(FastAPI: idempotency.fastapi.install(app, store=...))"
        )
    return pending


class PendingClaim:
    """One request inside `LateClaim`, from its first message to its answer."""

    __slots__ = (
        "_announced",
        "_asked",
        "_begun",
        "_body",
        "_ended",
        "_held",
        "_keyed",
        "_middleware",
        "_receive",
        "_recorder",
        "_replaced",
        "_size",
        "_start",
        "_unread",
        "_whole",
        "engine",
        "operation",
        "policy",
        "request",
        "scope",
        "send",
        "status",
    )

    def __init__(
        self, middleware: LateClaim, scope: Scope, receive: Receive, send: Send, keyed: bool
    ) -> None:
        self._middleware = middleware
        self._receive = receive
        self.send: Send = send
        self._keyed = keyed  # the request has a header that may carry a key
        self._announced = False  # a claim will come, so the answer must not begin before it
        self._begun = False  # the answer has begun and cannot be replaced any more
        self._replaced = False  # this object answers instead of the application
        self._held: Response | None = None  # such an answer, held until the CORS headers are known
        self._recorder: ResponseRecorder | None = None  # set by the claim
        self._start: Message | None = None  # the start of the answer, held back because a claim was announced
        self._body: list[bytes] = []  # a copy of the body that was read so far
        self._size = 0
        self._asked = False  # the body was asked for, so a client that waits for 100 (Continue) sends it
        self._ended = False  # the body has ended, or did not end in time
        self._whole = False  # the body was read to its end
        self._unread: deque[Message] = deque()  # messages read by the claim, but not yet by the application
        self.engine: Engine = middleware.engine
        self.scope: Scope = scope
        self.status: int = 0  # the status of the answer that was sent instead of the application's

    async def serve(self, app: ASGIApp) -> None:
        """Run *app* to its end."""
        hidden: Hidden = hide_bypasses(self.scope) if self._keyed else None
        try:
            await app(self.scope, self._receive_inner, self._send_inner)
        except Exception as error:
            if self._replaced:
                await self._send_held()
                if is_answered(error):
                    return
            if self._recorder is not None and not isinstance(error, Answered):
                await self._recorder.raised(error)
            raise
        except BaseException as error:
            if self._recorder is not None:
                await self._recorder.raised(error)
            raise
        else:
            if self._recorder is not None:
                await self._recorder.returned()
            elif self._replaced:
                await self._send_held()
            else:
                await self._flush()
        finally:
            if self._recorder is not None:
                self._recorder.leave()
            restore(self.scope, hidden)

    @property
    def frame(self) -> Frame | None:
        """The run of the request; None before its claim."""
        return None if self._recorder is None else self._recorder.frame

    # The claim.

    def announce(self) -> None:
        """Announce a claim: the start of an answer, such as that of a stream, is held back until then."""
        self._announced = True

    async def claim(self, principal: str | Callable[[], str], policy: Policy) -> None:
        """See `claim`. Afterwards the caller's context is part of the run."""
        if self._recorder is not None or self._replaced or self._begun:
            raise RuntimeError("claim a request once, and before its answer begins")
        require_known_headers(policy, self._middleware.key_names)
        self.policy: Policy = policy
        self.request: KeyedRequest[Run] = KeyedRequest(
            self.engine, self, method=self.scope["method"], path=full_path(self.scope)
        )
        self.operation: str = self.request.operation
        if self._keyed and not self._whole and self.scope["method"] in policy.methods:
            await self._read_rest(policy)
        verdict: Run | Response | bool | None = self.request.prepare(principal, policy)
        if verdict is True:
            verdict = self.request.conclude(await self.engine.begin(self.request))
        if isinstance(verdict, Response):
            await self._answer(verdict)
            raise answered(self.scope, verdict.status)
        if not isinstance(verdict, Run):
            return await self._flush()
        self._recorder = recorder = ResponseRecorder(self, verdict, None, self._next_message)
        recorder.enter()
        if self._start is not None:
            start, self._start = self._start, None
            await recorder.send(start)
        return None

    async def _read_rest(self, policy: Policy) -> None:
        """Read the rest of the body; the application gets it when it reads on."""
        try:
            await running().within(policy.body_timeout, self._read_to_end)
        except TimeoutError:
            self._ended = True

    async def _read_to_end(self) -> None:
        while not self._whole and self._size <= self._middleware.max_request_bytes:
            message = await self._receive_first()
            self._unread.append(message)
            if message["type"] != "http.request":
                return
            self._note(message)

    def _note(self, message: Message) -> None:
        chunk = message.get("body", b"")
        self._size += len(chunk)
        if self._size <= self._middleware.max_request_bytes:
            self._body.append(bytes(chunk))
        else:
            self._body.clear()
        self._whole = not message.get("more_body", False)

    # The `Source` of `KeyedRequest`.

    def is_part_of(self, key: StorageKey) -> bool:
        """Whether a middleware outside already runs this request under *key* (E10)."""
        return joined_run(self.scope, key) is not None

    def field_lines(self, name: bytes) -> Sequence[bytes]:
        """The field lines of the header *name*."""
        return [value for found, value in self.scope["headers"] if found == name]

    def view(self, tenant: str, *, limit: int) -> RequestView:
        """The whole request, with the body that the application gets."""
        limit = min(limit, self._middleware.max_request_bytes)
        if self._size > limit:
            raise RequestTooLarge(limit=limit)
        if not self._whole:
            if self._unread and self._unread[-1]["type"] != "http.request":
                raise IncompleteRequest
            raise RequestTimeout(seconds=self.policy.body_timeout)
        scope = self.scope
        return RequestView(
            scope["method"],
            full_path(scope),
            scope.get("query_string", b""),
            scope["headers"],
            b"".join(self._body),
            tenant,
        )

    # The `RequestHandler` of `ResponseRecorder`.

    async def replay(self, completed: Completed, waited: float) -> None:
        """Answer with a recorded outcome."""
        await self._answer(self.request.replay(completed, waited))

    async def refuse(self, error: IdempotencyError) -> None:
        """Answer with a problem."""
        await self._answer(self.request.refuse(error))

    # What the application receives and sends.

    async def _receive_inner(self) -> Message:
        if self._unread:
            return self._unread.popleft()
        if self._recorder is not None:
            return await self._recorder.receive()
        message = await self._receive_first()
        if self._keyed and message["type"] == "http.request":
            self._note(message)
        return message

    async def _receive_first(self) -> Message:
        """The next message from the server, before there is a recorder."""
        self._asked = True
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message

    async def _next_message(self) -> Message:
        return await self._receive()

    async def _send_inner(self, message: Message) -> None:
        if self._recorder is not None:
            return await self._recorder.send(message)
        if self._replaced:
            if message["type"] == "http.response.start":
                await self._send_held(message)
            return None
        if self._announced and not self._begun:
            if message["type"] == "http.response.start":
                self._start = message
                return None
            await self._flush()  # the application answers without a claim, which would now come too late
        self._begun = self._begun or message["type"].startswith("http.response")
        return await self.send(message)

    async def _flush(self) -> None:
        if self._start is not None:
            start, self._start = self._start, None
            self._begun = True
            await self.send(start)

    async def _answer(self, answer: Response) -> None:
        """
        Answer instead of the application; what the application sends from now on is dropped.

        A request with an Origin is answered once the application's own answer shows its CORS headers.
        """
        self._replaced = True
        self.status = answer.status
        if self._recorder is None and any(name == b"origin" for name, _ in self.scope["headers"]):
            self._held = answer
            if self._start is not None:
                await self._send_held(self._start)
        else:
            await self._send_answer(answer, answer.headers)

    async def _send_held(self, start: Message | None = None) -> None:
        """Send the answer that is held back, if any; *start* begins the application's own answer."""
        answer, self._held = self._held, None
        if answer is not None:
            own = list(start.get("headers", ())) if start is not None else []
            await self._send_answer(answer, with_origin_of(own, answer.headers))

    async def _send_answer(self, answer: Response, headers: Headers) -> None:
        body = b"" if self.scope["method"] == "HEAD" else answer.body
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if not self._ended and is_still_sent(self.scope, asked=self._asked):
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
            await RequestBody(self._receive, self.policy).discard()
            body = b""
        await self.send({"type": "http.response.body", "body": body})
