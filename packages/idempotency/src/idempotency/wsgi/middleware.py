"""
The WSGI middleware: reads the request, asks the engine, runs the application once, records, then answers.

It is the counterpart of `idempotency.asgi` for applications without an event loop, with a `SyncStore`. `RequestHandler`
makes the claim, `ResponseRecorder` records the application's answer.
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

    The application runs once per key, and its answer is recorded before the first byte goes to the server (E1).
    docs/wsgi.md says which engine rules hold here, and what WSGI does not show.

    Args:
        app: The application to protect.
        store: A `SyncStore`, such as `idempotency.stores.redis.SyncRedisStore`.
        tenant: A callable that takes the environment and returns whose key it is: `by_environ("REMOTE_USER")`, or your
            own, which returns a verified subject. There is no default: a replay to another user would be a leak. It may
            raise an `IdempotencyError`, such as `MissingTenant`, to refuse the request.
        policy: The policy; or a callable that takes the environment and returns one, or None for no protection.
        hooks: Called with every event (`idempotency.events`).
    Raises:
        TypeError: *store*, *tenant*, *policy* or a hook has the wrong type.

    Cost: one store call for a replay, two for a first run, and one more for every lease/3 that a run lasts. Threads and
    greenlets may share it. Open a store that pools connections after the server has forked.
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
            raise TypeError(
                "policy must be a Policy, or a plain function that takes an environment and returns one"
            )
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
    The same protection, but the application makes the claim itself, just before its handler: see `claim`.

    For frameworks that authenticate and validate inside: requests that they refuse never reach the store.

    Args:
        max_request_bytes: The longest body that is kept for a claim; the policy, known later, may allow less.
        body_timeout: Seconds for the body of a keyed request to arrive, checked between two reads.
        key_headers: The headers that may carry a key under any policy; the body is kept if one of them is present. The
            collection is read for each request, so headers may be added later.
    Raises:
        TypeError: *store* or a hook has the wrong type.
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
            # Before a framework parses a form from the body. A claim raises the same error again; without a claim the
            # body does not matter here.
            with suppress(IdempotencyError):
                body.read(limit=self.max_request_bytes)
        recorder = ResponseRecorder(RequestHandler(self.engine, environ, body, known), start_response)
        environ[_PENDING] = recorder
        return recorder.run(self.app)


def claim(environ: Environ, principal: str | Callable[[], str], policy: Policy = Policy()) -> None:  # noqa: B008
    """
    Claim the current request, inside `LateClaim`; call it just before the handler's first effect.

    It returns if the handler should run: under a claim, or without one if the request has no key and needs none.

    Args:
        principal: Whose key it is: a verified subject, such as a user's id; never a credential, which can change. Or a
            function that returns it, called only if the request has a key.
    Raises:
        Answered: The request already has its answer, a replay or a problem. Do not catch it: `LateClaim` sends that
            answer instead of the application's.
        RuntimeError: The request did not come through `LateClaim`, was claimed before, or its answer has begun: going
            on would run it without protection.
    """
    if not pending_claim(environ).claim(principal, policy):
        raise Answered


def pending_claim(environ: Environ) -> ResponseRecorder:
    """
    The recorder that `LateClaim` put into the environment.

    Raises:
        RuntimeError: The request did not come through `LateClaim`.
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
