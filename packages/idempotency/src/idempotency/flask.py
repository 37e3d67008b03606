"""
Idempotency for Flask: a decorator for views, claimed after authentication and just before the view's first line.

A request that `before_request` functions, the router or outer decorators refuse (401, 403, 404, 405, 422) never reaches
the store, and a replay is sent only to a request that is authenticated.

>>> from flask import Flask, g, jsonify, request
>>> from idempotency.flask import Idempotency
>>> from idempotency.stores.memory import SyncMemoryStore
>>> app, charges = Flask("payments"), []
>>> once = Idempotency(app, store=SyncMemoryStore(), principal=lambda: g.user)
>>> @app.before_request
... def authenticate():
...     g.user = {"Bearer a": "alice"}[request.headers["Authorization"]]
>>> @app.post("/charges")
... @once.protect
... def charge():
...     charges.append(request.json["amount"])
...     return jsonify(charges=len(charges)), 201
>>> headers = {"Authorization": "Bearer a", "Idempotency-Key": '"8e03978e"'}
>>> with app.test_client() as client:
...     first = client.post("/charges", json={"amount": 5}, headers=headers)
...     again = client.post("/charges", json={"amount": 5}, headers=headers)
>>> first.json, again.json, again.headers["Idempotency-Replayed"]
({'charges': 1}, {'charges': 1}, 'true')
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar, overload

from idempotency._runtime.extras import missing

try:
    import flask  # noqa: F401
except ModuleNotFoundError as _error:
    raise missing("flask", "idempotency.flask", _error) from _error

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException

from idempotency._core.callables import is_plain
from idempotency._core.policy import Policy
from idempotency._http.misplaced import Bare
from idempotency._http.refused_input import Asked, refused_input
from idempotency.engine.checks import checked_hooks
from idempotency.events import Hook
from idempotency.store import SyncStore
from idempotency.wsgi import LateClaim
from idempotency.wsgi.middleware import pending_claim
from idempotency.wsgi.types import Environ, StartResponse, WSGIApp

__all__ = ["Idempotency"]

_EXTENSION: Final = "idempotency"  # its name in `app.extensions`

# The functions that refuse input: a body that is not JSON, a form without a required field.
_ASKED: Final[Asked] = {
    "flask.wrappers": {"on_json_loading_failure", "_load_form_data"},
    "werkzeug.wrappers.request": {"get_json", "get_data", "_load_form_data"},
    "werkzeug.datastructures.structures": {"__getitem__"},
}

P = ParamSpec("P")
R = TypeVar("R")


class Idempotency:
    """
    The extension: one for an application, or for several made by a factory (`init_app`).

    Args:
        store: A `SyncStore`, such as `idempotency.stores.redis.SyncRedisStore`.
        principal: Returns whose key it is; called in the request, just before the view. Return a verified subject, such
            as the id of the logged-in user, never a credential, which can change. It may raise, like a view.
        policy: The policy of every protected view that has no policy of its own.
        hooks: Called with every event (`idempotency.events`).
        max_request_bytes: The longest body of a request with a key.
    Raises:
        TypeError: *store*, *principal*, *policy* or a hook has the wrong type.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        store: SyncStore,
        principal: Callable[[], str],
        policy: Policy = Policy(),  # noqa: B008
        hooks: Sequence[Hook] = (),
        max_request_bytes: int = 1_048_576,
    ) -> None:
        if not is_plain(principal):
            raise TypeError("principal must be a plain function without arguments that returns the user's id")
        if not isinstance(policy, Policy):
            raise TypeError("policy must be a Policy")
        self._store = store
        self._principal = principal
        self._policy = policy
        self._hooks = checked_hooks(hooks)
        self._max_request_bytes = max_request_bytes
        self._key_headers = set(policy.key_headers)
        self._bare = Bare()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """
        Install the extension: wraps `app.wsgi_app`, so that answers can be recorded before they are sent.

        Raises:
            TypeError: The store is not a `SyncStore`.
            RuntimeError: *app* already has an `Idempotency`; a request can be recorded only once, in one store.
        """
        if _EXTENSION in app.extensions:
            raise RuntimeError(
                "this application already has an Idempotency: call init_app(app) once, and use that Idempotency for "
                "every view; a view may have its own policy"
            )
        app.wsgi_app = LateClaim(  # type: ignore[method-assign]
            self._checked(app, app.wsgi_app),
            store=self._store,
            hooks=self._hooks,
            max_request_bytes=self._max_request_bytes,
            key_headers=self._key_headers,
        )
        app.extensions[_EXTENSION] = self

    def _checked(self, app: Flask, inner: WSGIApp) -> WSGIApp:
        """*inner*, with a check of the application's views at the first request."""
        unchecked = True

        def checked(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            nonlocal unchecked
            if unchecked:
                for endpoint, view in app.view_functions.items():
                    self._bare.refuse(view, f"the view {endpoint}")
                unchecked = False
            return inner(environ, start_response)

        return checked

    @overload
    def protect(self, view: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def protect(
        self, view: None = None, /, *, policy: Policy
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...

    def protect(self, view: Any = None, /, *, policy: Policy | None = None) -> Any:
        """
        Protect a view: put it directly above the function, below the route and below decorators that authenticate.

        Raises:
            TypeError: A policy was given without its name.
            RuntimeError: At a request: this extension is not installed in the application (`init_app`). The view did
                not run.
        """
        if isinstance(view, Policy):
            raise TypeError("give a policy by its name: protect(policy=...)")
        chosen = self._policy if policy is None else policy
        self._key_headers.update(chosen.key_headers)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            self._bare.add(function)

            @wraps(function)
            def protected(*args: Any, **kwargs: Any) -> Any:
                if current_app.extensions.get(_EXTENSION) is not self:
                    raise RuntimeError(
                        "the Idempotency that protects this view is not installed in its application: call "
                        "init_app(app), and use one Idempotency for each application"
                    )
                pending = pending_claim(request.environ)
                if not pending.claim(self._principal, chosen):
                    return Response(status=204)  # dropped: `LateClaim` sends the replay or the problem
                try:
                    return current_app.ensure_sync(function)(*args, **kwargs)
                except HTTPException as error:
                    if refused_input(error, asked=_ASKED, only_before={}, frameworks=("flask", "werkzeug")):
                        pending.refuse_input()
                    raise

            return protected

        return decorate if view is None else decorate(view)
