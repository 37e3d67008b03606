"""
The WSGI middleware: read the request, let the engine decide, run the application once, record, then answer.

The counterpart of `idempotency.asgi` for applications without an event loop, over a `SyncStore`. `RequestHandler` asks
the engine, `ResponseRecorder` has the application's answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Final

from idempotency._core.callables import is_plain
from idempotency._core.errors import Answered, IdempotencyError
from idempotency._core.policy import Policy
from idempotency.engine.checks import is_async_store
from idempotency.engine.sync_engine import SyncEngine
from idempotency.events import Hook
from idempotency.store import SyncStore
from idempotency.wsgi.handler import RequestHandler
from idempotency.wsgi.recorder import ResponseRecorder
from idempotency.wsgi.request import BodyReader, field_lines
from idempotency.wsgi.types import Environ, StartResponse, WSGIApp

__all__ = ["IdempotencyMiddleware", "LateClaim", "claim", "pending_claim"]

_log = logging.getLogger("idempotency")


class IdempotencyMiddleware:
    """
    One effect per Idempotency-Key, for any WSGI application, after draft-ietf-httpapi-idempotency-key-header-07.

    The application runs once per key, and its answer is recorded before the first byte is handed to the server (E1).
    docs/wsgi.md says which engine rule holds here, and what WSGI cannot tell.

    Args:
        app: The application to protect.
        store: A `SyncStore`, such as `idempotency.stores.redis.SyncRedisStore`.
        tenant: Whose key it is, from the environment: `by_environ("REMOTE_USER")`, or a callable that gives a subject
            which was verified. It has no default: a replay across principals is a leak. It may raise an
            `IdempotencyError`, such as `MissingTenant`, to refuse.
        policy: What is promised; or a callable that gives the policy for an environment, None to leave it alone.
        hooks: Called with every event (`idempotency.events`).
    Raises:
        TypeError: *store*, *tenant*, *policy* or a hook is not of its kind.

    Cost: one store call for a replay, two for a first run, and one for every lease/3 that it lasts. Safe to share
    between threads and greenlets. Open a store that pools connections after the server has forked.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        store: SyncStore,
        tenant: Callable[[Environ], str],
        policy: Policy | Callable[[Environ], Policy | None] = Policy(),  # noqa: B008
        hooks: Sequence[Hook] = (),
    ) -> None:
        if not is_plain(tenant):
            raise TypeError(
                'tenant must be a plain function of the environment, such as by_environ("REMOTE_USER")'
            )
        if not isinstance(policy, Policy) and not is_plain(policy):
            raise TypeError("policy must be a Policy, or a plain function that gives one for an environment")
        self.app = app
        self.engine: SyncEngine = _engine(store, hooks)
        self.tenant = tenant
        self._policy_of = (lambda _environ: policy) if isinstance(policy, Policy) else policy
        promise = policy.promise if isinstance(policy, Policy) else "set by each route's policy"
        _log.info("idempotency: %s, in %s", promise, type(store).__name__)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        policy = self._policy_of(environ)
        if policy is None or environ["REQUEST_METHOD"] not in policy.methods:
            return self.app(environ, start_response)
        if not policy.required and not any(field_lines(environ, name) for _, name in policy.key_fields):
            return self.app(environ, start_response)
        body = BodyReader(environ, timeout=policy.body_timeout, monotonic=self.engine.monotonic)
        handler = RequestHandler(self.engine, environ, body)
        recorder = ResponseRecorder(handler, start_response)
        recorder.claim(lambda: self.tenant(environ), policy)
        return recorder.run(self.app)


_PENDING: Final = "idempotency.pending"


class LateClaim:
    """
    The same protection, claimed by the application itself, just before its handler: see `claim`.

    For frameworks that authenticate and validate inside: what they refuse never reaches the store.

    Args:
        max_request_bytes: The longest body that is kept for a claim; the policy, known later, may allow less.
        body_timeout: Seconds for the body of a keyed request to arrive, looked at between two reads.
        key_headers: The headers that may carry a key, of every policy: the body of such a request is kept. Looked at
            for each request, so that it may still grow.
    Raises:
        TypeError: *store* or a hook is not of its kind.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        store: SyncStore,
        hooks: Sequence[Hook] = (),
        max_request_bytes: int = 1_048_576,
        body_timeout: float = 30.0,
        key_headers: Collection[str] = ("Idempotency-Key",),
    ) -> None:
        self.app = app
        self.engine: SyncEngine = _engine(store, hooks)
        self.max_request_bytes = max_request_bytes
        self.body_timeout = body_timeout
        self.key_headers = key_headers

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        body = BodyReader(environ, timeout=self.body_timeout, monotonic=self.engine.monotonic)
        known = {name.lower().encode("ascii") for name in self.key_headers}
        if any(field_lines(environ, name) for name in known):
            # Before a framework parses a form out of it. What it raises a claim will raise again; where none is made
            # the body is the application's affair.
            with suppress(IdempotencyError):
                body.read(limit=self.max_request_bytes)
        recorder = ResponseRecorder(RequestHandler(self.engine, environ, body, known), start_response)
        environ[_PENDING] = recorder
        return recorder.run(self.app)


def claim(environ: Environ, principal: str | Callable[[], str], policy: Policy = Policy()) -> None:  # noqa: B008
    """
    Claim the current request, below `LateClaim`; call it just before the handler's first effect.

    Returns where the handler is to run: under a claim, or, where the request has no key and needs none, without.

    Args:
        principal: Whose key it is: a verified subject, such as a user's id; never a credential that can change. Or a
            function that gives it, called only where the request has a key.
    Raises:
        Answered: The request has its answer already, a replay or a problem. Let it pass: `LateClaim` sends that answer
            in place of whatever the application says.
        RuntimeError: The request did not come through `LateClaim`, was claimed before, or has begun to answer: going
            on would run it without protection.
    """
    if not pending_claim(environ).claim(principal, policy):
        raise Answered


def pending_claim(environ: Environ) -> ResponseRecorder:
    """
    The claim that `LateClaim` left in the environment.

    Raises:
        RuntimeError: It did not run.
    """
    recorder = environ.get(_PENDING)
    if not isinstance(recorder, ResponseRecorder):
        raise RuntimeError(
            "this request did not come through idempotency.wsgi.LateClaim: put it around the WSGI application"
        )
    return recorder


def _engine(store: SyncStore, hooks: Sequence[Hook]) -> SyncEngine:
    if isinstance(store, type) or not hasattr(store, "acquire") or is_async_store(store):
        raise TypeError(
            f"store must be a SyncStore, such as SyncMemoryStore(), not this {type(store).__name__}; "
            "each store module has one, such as SyncRedisStore, beside its asynchronous store"
        )
    return SyncEngine(store, hooks=hooks)
