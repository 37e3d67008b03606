"""Late claims inside another run that ends before or after them, for ASGI and WSGI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import asgi_driver
import pytest
import wsgi_driver

from idempotency import IdempotencyMiddleware, Policy, current_claim
from idempotency.asgi import LateClaim, claim
from idempotency.asgi.scope import RUNS
from idempotency.engine.current_claim import active
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.wsgi import IdempotencyMiddleware as WSGIMiddleware
from idempotency.wsgi import LateClaim as WSGILateClaim
from idempotency.wsgi import claim as wsgi_claim


def current_key() -> str | None:
    """The key of the run that this code is part of."""
    found = current_claim()
    return None if found is None else found.claim.key


class Observed:
    """The current keys in the application and in a layer around it."""

    def __init__(self) -> None:
        self.before: str | None = None
        self.inside: str | None = None
        self.after: str | None = None
        self.runs_after: list[str] = []


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asgi_app(observed: Observed) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "late", Policy())
        observed.inside = current_key()
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    return app


def asgi_layer(app: Any, observed: Observed) -> Any:
    async def layer(scope: Any, receive: Any, send: Any) -> None:
        observed.before = current_key()
        await app(scope, receive, send)
        observed.after = current_key()
        observed.runs_after = [frame.claim.key for frame in scope.get(RUNS, ())]

    return layer


def early(app: Any) -> Any:
    return IdempotencyMiddleware(app, store=MemoryStore(), tenant=lambda scope: "early")


def late(app: Any) -> Any:
    return LateClaim(app, store=MemoryStore())


@pytest.mark.anyio
async def test_outer_run_is_current_again_after_an_inner_late_claim_has_ended() -> None:
    observed = Observed()
    answer = await asgi_driver.call(early(asgi_layer(late(asgi_app(observed)), observed)), key="k")
    assert (answer.status, observed.inside) == (201, "late:k")
    assert (observed.before, observed.after, observed.runs_after) == ("early:k", "early:k", ["early:k"])
    assert active.get() is None


@pytest.mark.anyio
async def test_late_claim_continues_after_an_inner_run_in_which_it_was_made_has_ended() -> None:
    observed = Observed()
    scope = asgi_driver.http_scope(headers=asgi_driver.key_header("k"))
    driver = asgi_driver.RequestDriver(late(asgi_layer(early(asgi_app(observed)), observed)), scope)
    driver.send_body(b"{}")
    answer = await driver.run()
    assert (answer.status, observed.before, observed.inside) == (201, None, "late:k")
    assert (observed.after, observed.runs_after) == ("late:k", ["late:k"])
    assert (RUNS in scope, current_key()) == (False, None)


def wsgi_app(observed: Observed) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        wsgi_claim(environ, "late")
        observed.inside = current_key()
        start_response("201 Created", [])
        return [b"done"]

    return app


def wsgi_layer(app: Any, observed: Observed) -> Any:
    def layer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        observed.before = current_key()
        body = app(environ, start_response)
        observed.after = current_key()
        observed.runs_after = [frame.claim.key for frame in environ.get(RUNS, ())]
        return body  # type: ignore[no-any-return]

    return layer


def wsgi_early(app: Any) -> Any:
    return WSGIMiddleware(app, store=SyncMemoryStore(), tenant=lambda environ: "early")


def wsgi_late(app: Any) -> Any:
    return WSGILateClaim(app, store=SyncMemoryStore())


def test_wsgi_outer_run_is_current_again_after_an_inner_late_claim_has_ended() -> None:
    observed = Observed()
    answer = wsgi_driver.call(wsgi_early(wsgi_layer(wsgi_late(wsgi_app(observed)), observed)), key="k")
    assert (answer.status, observed.inside) == (201, "late:k")
    assert (observed.before, observed.after, observed.runs_after) == ("early:k", "early:k", ["early:k"])
    assert active.get() is None


def test_wsgi_late_claim_continues_after_an_inner_run_in_which_it_was_made_has_ended() -> None:
    observed = Observed()
    environ = wsgi_driver.environ_of(key="k")
    answer = wsgi_driver.call(wsgi_late(wsgi_layer(wsgi_early(wsgi_app(observed)), observed)), environ)
    assert (answer.status, observed.before, observed.inside) == (201, None, "late:k")
    assert (observed.after, observed.runs_after) == ("late:k", ["late:k"])
    assert (active.get(), environ.get(RUNS, ())) == (None, ())
