"""A late claim may be made inside another run, which is over before it or after it."""

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


def held() -> str | None:
    """The key of the run that this code is part of."""
    found = current_claim()
    return None if found is None else found.claim.key


class Seen:
    """What the application and a layer around the inner run are part of."""

    def __init__(self) -> None:
        self.before: str | None = None
        self.inside: str | None = None
        self.after: str | None = None
        self.runs_after: list[str] = []


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asgi_app(seen: Seen) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "late", Policy())
        seen.inside = held()
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    return app


def asgi_layer(app: Any, seen: Seen) -> Any:
    async def layer(scope: Any, receive: Any, send: Any) -> None:
        seen.before = held()
        await app(scope, receive, send)
        seen.after = held()
        seen.runs_after = [frame.claim.key for frame in scope.get(RUNS, ())]

    return layer


def early(app: Any) -> Any:
    return IdempotencyMiddleware(app, store=MemoryStore(), tenant=lambda scope: "early")


def late(app: Any) -> Any:
    return LateClaim(app, store=MemoryStore())


@pytest.mark.anyio
async def test_a_layer_is_in_its_run_again_once_a_late_claim_inside_it_is_over() -> None:
    seen = Seen()
    answer = await asgi_driver.call(early(asgi_layer(late(asgi_app(seen)), seen)), key="k")
    assert (answer.status, seen.inside) == (201, "late:k")
    assert (seen.before, seen.after, seen.runs_after) == ("early:k", "early:k", ["early:k"])
    assert active.get() is None


@pytest.mark.anyio
async def test_a_late_claim_goes_on_where_a_run_that_it_was_made_in_is_over() -> None:
    seen = Seen()
    scope = asgi_driver.http_scope(headers=asgi_driver.key_header("k"))
    driver = asgi_driver.RequestDriver(late(asgi_layer(early(asgi_app(seen)), seen)), scope)
    driver.send_body(b"{}")
    answer = await driver.run()
    assert (answer.status, seen.before, seen.inside) == (201, None, "late:k")
    assert (seen.after, seen.runs_after) == ("late:k", ["late:k"])
    assert (RUNS in scope, held()) == (False, None)


def wsgi_app(seen: Seen) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        wsgi_claim(environ, "late")
        seen.inside = held()
        start_response("201 Created", [])
        return [b"done"]

    return app


def wsgi_layer(app: Any, seen: Seen) -> Any:
    def layer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.before = held()
        body = app(environ, start_response)
        seen.after = held()
        seen.runs_after = [frame.claim.key for frame in environ.get(RUNS, ())]
        return body  # type: ignore[no-any-return]

    return layer


def wsgi_early(app: Any) -> Any:
    return WSGIMiddleware(app, store=SyncMemoryStore(), tenant=lambda environ: "early")


def wsgi_late(app: Any) -> Any:
    return WSGILateClaim(app, store=SyncMemoryStore())


def test_a_layer_of_wsgi_is_in_its_run_again_once_a_late_claim_inside_it_is_over() -> None:
    seen = Seen()
    answer = wsgi_driver.call(wsgi_early(wsgi_layer(wsgi_late(wsgi_app(seen)), seen)), key="k")
    assert (answer.status, seen.inside) == (201, "late:k")
    assert (seen.before, seen.after, seen.runs_after) == ("early:k", "early:k", ["early:k"])
    assert active.get() is None


def test_a_late_claim_of_wsgi_goes_on_where_a_run_that_it_was_made_in_is_over() -> None:
    seen = Seen()
    environ = wsgi_driver.environ_of(key="k")
    answer = wsgi_driver.call(wsgi_late(wsgi_layer(wsgi_early(wsgi_app(seen)), seen)), environ)
    assert (answer.status, seen.before, seen.inside) == (201, None, "late:k")
    assert (seen.after, seen.runs_after) == ("late:k", ["late:k"])
    assert (active.get(), environ.get(RUNS, ())) == (None, ())
