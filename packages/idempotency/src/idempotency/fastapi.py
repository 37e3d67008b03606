"""
Idempotency for FastAPI: claimed after authentication and validation, just before the endpoint's first line.

A 401 or 403 of a dependency, a validation error and broken JSON make no store call and do not use up the key. A renewed
token of the same user gets the replay, an expired one never does.

>>> from typing import Annotated
>>> from fastapi import Depends, FastAPI, Header, HTTPException
>>> from fastapi.testclient import TestClient
>>> from idempotency.fastapi import Idempotent, install
>>> from idempotency.stores.memory import MemoryStore
>>> def current_user(authorization: Annotated[str, Header()]) -> str:
...     if authorization not in ("Bearer 1", "Bearer 2"):
...         raise HTTPException(401)
...     return "alice"
>>> once, app, charges = Idempotent(principal=current_user), FastAPI(), []
>>> install(app, store=MemoryStore())
>>> @app.post("/charges", status_code=201)
... @once.protect
... async def charge(amount: int) -> dict[str, int]:
...     charges.append(amount)
...     return {"charge": len(charges)}
>>> client = TestClient(app, headers={"Idempotency-Key": '"8e03978e"'})
>>> def post(token, amount=5):
...     return client.post(f"/charges?amount={amount}", headers={"Authorization": token})
>>> post("Bearer 1").json(), post("Bearer 2").json(), post("Bearer 3").status_code, post("Bearer 1", "x").status_code
({'charge': 1}, {'charge': 1}, 401, 422)
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial, wraps
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, cast, overload

from idempotency._runtime.extras import missing

try:
    import fastapi  # noqa: F401
except ModuleNotFoundError as _error:
    raise missing("fastapi", "idempotency.fastapi", _error) from _error

import anyio.from_thread
from fastapi import Depends, FastAPI, HTTPException
from fastapi.routing import APIRoute
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from idempotency._core.errors import Answered
from idempotency._core.policy import Policy
from idempotency._http.misplaced import Bare
from idempotency.asgi.late_claim import LateClaim, PendingClaim, pending_claim
from idempotency.engine.current_claim import active
from idempotency.events import Hook
from idempotency.openapi import add_idempotency
from idempotency.store import Store

__all__ = ["Idempotent", "install"]

_log = logging.getLogger("idempotency")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_PARAMETER = "idempotency_pending_claim"  # added to an endpoint's signature, removed before the call


def install(
    app: FastAPI,
    *,
    store: Store,
    hooks: Sequence[Hook] = (),
    max_request_bytes: int = 1_048_576,
    key_headers: Iterable[str] = (),
) -> None:
    """
    Add `LateClaim` to *app*, and describe the protected operations in its OpenAPI document.

    Args:
        store: Where records are kept, such as `idempotency.stores.redis.RedisStore`.
        hooks: Called with every event (`idempotency.events`).
        max_request_bytes: The longest body of a request with a key.
        key_headers: Further headers that may carry a key. The headers in the policies of *app*'s endpoints are found
            automatically at the first request; give here those of mounted applications and of endpoints added later.
    Raises:
        TypeError: *store* or a hook has the wrong type.
        RuntimeError: *app* has begun to serve, or already has a `LateClaim`. At the first request: `protect` is above
            the decorator of a route, so its endpoint would run without protection.
    """
    kinds: list[Any] = [added.cls for added in app.user_middleware]
    if LateClaim in kinds:
        raise RuntimeError(
            "this application has a LateClaim already: call install(app) once for each application"
        )
    LateClaim(app, store=store, hooks=hooks)  # to refuse a wrong store here, and not at the first request
    app.add_middleware(
        LateClaim,
        store=store,
        hooks=hooks,
        max_request_bytes=max_request_bytes,
        key_headers=_KeyHeaders(app, key_headers),
    )
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = describe()
            for policy, operations in _protected(app).items():
                document = add_idempotency(document, policy, operations=operations)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


class Idempotent(Generic[T]):
    """
    Protects endpoints whose requests have a principal.

    Args:
        principal: A dependency that returns whose key it is, such as one that your endpoints already use. If it raises,
            FastAPI answers as usual and the key stays free.
        name: Takes the principal and returns its name in the store: a stable str, such as `lambda user: user.id`. By
            default the principal itself, which must then be a `str`.
        policy: The policy, unless an endpoint has its own.
    Raises:
        TypeError: *principal* or *name* is not a function, or *policy* not a `Policy`.
    """

    # A type checker takes the first overload that fits: coroutines and iterators, which FastAPI resolves, come first.
    @overload
    def __init__(
        self,
        *,
        principal: Callable[..., Coroutine[Any, Any, T]],
        name: Callable[[T], str] | None = None,
        policy: Policy = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        principal: Callable[..., AsyncIterator[T] | Iterator[T]],
        name: Callable[[T], str] | None = None,
        policy: Policy = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        principal: Callable[..., T],
        name: Callable[[T], str] | None = None,
        policy: Policy = ...,
    ) -> None: ...

    def __init__(
        self,
        *,
        principal: Callable[..., Any],
        name: Callable[[Any], str] | None = None,
        policy: Policy = Policy(),  # noqa: B008
    ) -> None:
        function: Any
        for function in (principal, name or principal):
            if callable(function):
                continue
            raise TypeError("principal must be a dependency, and name a function of what it returns")
        if not isinstance(policy, Policy):
            raise TypeError("policy must be a Policy")
        self._name: Callable[[T], str] = (lambda user: cast("str", user)) if name is None else name
        self._policy = policy

        def bind(connection: HTTPConnection, user: Any) -> _Bound:
            pending = pending_claim(connection.scope)
            pending.announce()
            return _Bound(pending, partial(self._name, user))

        bind.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("connection", inspect.Parameter.KEYWORD_ONLY, annotation=HTTPConnection),
                inspect.Parameter(
                    "user", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Any, Depends(principal)]
                ),
            ]
        )
        self._bind = bind

    @overload
    def protect(self, endpoint: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def protect(
        self, endpoint: None = None, /, *, policy: Policy
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...

    def protect(self, endpoint: Any = None, /, *, policy: Policy | None = None) -> Any:
        """
        Protect an endpoint: put it directly below the route's decorator.

        The endpoint may be a coroutine function, a plain function (which FastAPI runs in a thread) or a generator that
        streams.

        Args:
            policy: The endpoint's own policy, if it differs.
        Raises:
            TypeError: The endpoint is protected already, or a policy was given without its name.
        """
        chosen = self._policy if policy is None else policy
        if isinstance(endpoint, Policy):
            raise TypeError("give a policy by its name: protect(policy=...)")
        if endpoint is None:
            return partial(self._protect, policy=chosen)
        return self._protect(endpoint, policy=chosen)

    @property
    def route_class(self) -> type[APIRoute]:
        """
        For `APIRouter(route_class=once.route_class)`: protects every endpoint of a router.

        Only the methods of the policy are claimed, so `GET` endpoints behave as before.
        """
        protect = self._protect
        policy = self._policy

        class IdempotentRoute(APIRoute):
            """A route whose endpoint is protected."""

            def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
                if not hasattr(endpoint, "idempotency_policy"):
                    endpoint = protect(endpoint, policy=policy)
                super().__init__(path, endpoint, **options)

        return IdempotentRoute

    def _protect(self, endpoint: Callable[..., Any], *, policy: Policy) -> Callable[..., Any]:
        if hasattr(endpoint, "idempotency_policy"):
            raise TypeError(
                f"{getattr(endpoint, '__name__', endpoint)} is protected already: protect an endpoint once"
            )
        _bare.add(endpoint)
        protected: Any
        called = _called(endpoint)
        if inspect.isasyncgenfunction(called):

            @wraps(endpoint)
            async def protected_stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                await _take(kwargs).claim(policy)
                async for item in endpoint(*args, **kwargs):
                    yield item

            protected = protected_stream
        elif inspect.isgeneratorfunction(called):

            @wraps(endpoint)
            def protected_generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
                _take(kwargs).claim_from_thread(policy)
                yield from endpoint(*args, **kwargs)

            protected = protected_generator
        elif inspect.iscoroutinefunction(called):

            @wraps(endpoint)
            async def protected_coroutine(*args: Any, **kwargs: Any) -> Any:
                await _take(kwargs).claim(policy)
                return await endpoint(*args, **kwargs)

            protected = protected_coroutine
        else:

            @wraps(endpoint)
            def protected_function(*args: Any, **kwargs: Any) -> Any:
                _take(kwargs).claim_from_thread(policy)
                return endpoint(*args, **kwargs)

            protected = protected_function
        protected.__signature__ = _with_parameter(endpoint, Depends(self._bind))
        protected.idempotency_policy = policy
        return cast("Callable[..., Any]", protected)


class _Bound:
    """A pending claim with the name of its principal."""

    def __init__(self, pending: PendingClaim, name: Callable[[], str]) -> None:
        self._pending = pending
        self._name = name

    async def claim(self, policy: Policy) -> None:
        try:
            await self._pending.claim(self._name, policy)
        except Answered:
            raise _AnsweredHTTPException(self._pending.status) from None

    def claim_from_thread(self, policy: Policy) -> None:
        anyio.from_thread.run(self.claim, policy)
        frame = self._pending.frame
        if frame is not None:
            active.set(frame)  # set in the loop's context so far, but this thread has its own


class _AnsweredHTTPException(HTTPException, Answered):
    """`Answered` as an `HTTPException`, which FastAPI and a user's dependencies expect when a request ends early."""


def _called(endpoint: Any) -> Any:
    """The function that runs when *endpoint*, which may be an object, is called."""
    while isinstance(endpoint, partial):
        endpoint = endpoint.func
    return endpoint if inspect.isroutine(endpoint) else getattr(endpoint, "__call__", endpoint)  # noqa: B004


def _take(kwargs: dict[str, Any]) -> _Bound:
    bound = kwargs.pop(_PARAMETER, None)
    if not isinstance(bound, _Bound):
        raise RuntimeError(
            "a protected endpoint was called directly, not by FastAPI: call the function below the decorator"
        )
    return bound


def _with_parameter(endpoint: Callable[..., Any], dependency: Any) -> inspect.Signature:
    """The endpoint's signature, with its annotations resolved, and one more parameter for the claim."""
    try:
        signature = inspect.signature(endpoint, eval_str=True)
    except Exception:  # a name is not defined yet, or only for type checkers: FastAPI reports that itself
        signature = inspect.signature(endpoint)
    claim = inspect.Parameter(_PARAMETER, inspect.Parameter.KEYWORD_ONLY, annotation=Any, default=dependency)
    parameters = list(signature.parameters.values())
    index = next((i for i, one in enumerate(parameters) if one.kind is one.VAR_KEYWORD), len(parameters))
    return signature.replace(parameters=[*parameters[:index], claim, *parameters[index:]])


class _KeyHeaders:
    """The names of all headers that may carry a key; read when it is iterated, after all routes were added."""

    def __init__(self, app: FastAPI, more: Iterable[str]) -> None:
        self._app = app
        self._more = tuple(more)

    def __iter__(self) -> Iterator[str]:
        _refuse_bare(self._app.routes, "")
        _warn_of_compression_inside(self._app)
        yield from Policy().key_headers
        yield from self._more
        for policy in _protected(self._app):
            yield from policy.key_headers


_bare = Bare()


def _refuse_bare(routes: Sequence[Any], prefix: str) -> None:
    """Refuse to serve an endpoint that was protected only after it was registered, in mounted applications too."""
    for path, endpoint, methods in _routes(routes, prefix):
        _bare.refuse(endpoint, f"{'/'.join(sorted(methods))} {path}")
    for route in routes:
        if isinstance(route, Mount):
            _refuse_bare(route.routes, prefix + route.path)


def _warn_of_compression_inside(app: FastAPI) -> None:
    """Warn of compressed answers: a replay would send them to clients that may not accept the compression."""
    kinds: list[Any] = [added.cls for added in app.user_middleware]  # the outermost first
    if LateClaim in kinds and GZipMiddleware in kinds[kinds.index(LateClaim) :]:
        _log.warning(
            "GZipMiddleware is inside the idempotency middleware, so replays are compressed as the first client asked: "
            "add it after install(app)"
        )


def _protected(app: FastAPI) -> dict[Policy, list[tuple[str, str]]]:
    """The protected operations of *app*, by policy."""
    found: dict[Policy, list[tuple[str, str]]] = {}
    for path, endpoint, methods in _routes(app.routes, ""):
        policy = getattr(endpoint, "idempotency_policy", None)
        if isinstance(policy, Policy):
            found.setdefault(policy, []).extend((method, path) for method in sorted(methods & policy.methods))
    return found


def _routes(routes: Sequence[Any], prefix: str) -> Iterator[tuple[str, Any, set[str]]]:
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        inner = contexts() if callable(contexts) else (route,)
        for one in inner:
            if getattr(one, "methods", None) and getattr(one, "endpoint", None):
                yield prefix + one.path_format, one.endpoint, set(one.methods)
