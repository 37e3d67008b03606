"""`assert_idempotent` accepts idempotent applications, and reports the mistakes of hand-rolled middlewares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from idempotency import IdempotencyMiddleware, Policy, one_tenant
from idempotency.stores.memory import MemoryStore
from idempotency.stores.sqlite import SQLiteStore
from idempotency.testing import Checked, assert_idempotent

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Charges:
    """An ASGI application that charges once for each request, and yields to the loop before and after."""

    def __init__(self, waits: int = 2) -> None:
        self.charged = 0
        self.waits = waits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(self.waits):
            await asyncio.sleep(0)
        self.charged += 1
        body = b"%d" % self.charged
        for _ in range(self.waits):
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": body})


class HandRolledMiddleware:
    """
    A hand-rolled middleware, correct by default, that keeps `answers` by key, None while the first request runs.

    Each option makes one mistake.
    """

    def __init__(
        self,
        app: Any,
        *,
        claims: bool = True,
        free_on_cancel: bool = False,
        stop_on_disconnect: bool = False,
        change: Callable[[bytes], bytes] = bytes,
        running: int = 409,
        when_cancelled: tuple[int, bytes] | None = None,
    ) -> None:
        self.app = app
        self.answers: dict[bytes, list[Any] | None] = {}
        self.claims = claims
        self.free_on_cancel = free_on_cancel
        self.stop_on_disconnect = stop_on_disconnect
        self.change = change
        self.running = running
        self.when_cancelled = when_cancelled

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        key = dict(scope["headers"])[b"idempotency-key"]
        body = await receive()
        if body["type"] == "http.disconnect":
            return
        if key in self.answers:
            answer = self.answers[key]
            if answer is None:
                answer = _messages(self.running, b"running")
            for message in answer:
                body = {"body": self.change(message["body"])} if "body" in message else {}
                await send({**message, **body})
            return
        if self.claims:
            self.answers[key] = None
        messages: list[Any] = []

        async def inner_receive() -> Any:
            return body

        async def inner_send(message: Any) -> None:
            messages.append(message)

        try:
            run = self.app(scope, inner_receive, inner_send)
            if self.stop_on_disconnect:
                await self._race(run, receive)
            else:
                await run
        except asyncio.CancelledError:
            if self.free_on_cancel:
                del self.answers[key]
            elif self.when_cancelled is not None:
                self.answers[key] = _messages(*self.when_cancelled)
            raise
        self.answers[key] = messages
        for message in messages:
            await send(message)

    async def _race(self, run: Any, receive: Any) -> None:
        serving, leaving = asyncio.ensure_future(run), asyncio.ensure_future(receive())
        await asyncio.wait([serving, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not serving.done():
            serving.cancel()
        await serving


def _messages(status: int, body: bytes) -> list[Any]:
    return [
        {"type": "http.response.start", "status": status, "headers": []},
        {"type": "http.response.body", "body": body},
    ]


async def check(app: Any, charges: Any, **more: Any) -> Checked:
    return await assert_idempotent(app, "POST", "/charges", effects=lambda: charges.charged, **more)


# Idempotent applications are accepted.


async def test_the_middleware_over_a_handler_that_waits_is_idempotent_at_every_step() -> None:
    charges = Charges(waits=5)
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=one_tenant())

    checked = await check(app, charges)

    assert checked.steps >= 10
    assert checked.disconnects == checked.cancellations == checked.steps
    assert checked.twins == 5


async def test_the_middleware_over_sqlite_is_idempotent(tmp_path: Path) -> None:
    charges = Charges()
    store = SQLiteStore(tmp_path / "records.db")
    app = IdempotencyMiddleware(charges, store=store, tenant=one_tenant())

    await check(app, charges, interruptions=6)
    await store.aclose()


async def test_a_fastapi_route_in_a_thread_is_idempotent() -> None:
    charges: list[int] = []
    app = FastAPI(middleware=[Middleware(IdempotencyMiddleware, store=MemoryStore(), tenant=one_tenant())])

    @app.post("/charges/{account}", status_code=201)
    def charge(account: str, cents: int, body: dict[str, int]) -> dict[str, Any]:
        charges.append(body["amount"])
        return {"account": account, "cents": cents, "number": len(charges)}

    async def count() -> int:
        return len(charges)

    await assert_idempotent(
        app, "post", "/charges/a%20b?cents=5", json={"amount": 3}, effects=count, interruptions=6
    )

    assert set(charges) == {3}


async def test_duplicates_that_wait_for_the_first_answer_are_idempotent() -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=one_tenant(), policy=Policy(wait=60.0))

    await check(app, charges, interruptions=4, patience=0.05)


async def test_a_correct_hand_rolled_middleware_passes() -> None:
    charges = Charges()

    checked = await check(HandRolledMiddleware(charges), charges, twins=3)

    assert checked.twins == 3


async def test_a_request_may_have_several_effects() -> None:
    charges = Charges()

    await assert_idempotent(HandRolledMiddleware(charges), "POST", "/", effects=lambda: 3 * charges.charged)


async def test_a_long_run_is_interrupted_at_the_given_number_of_steps() -> None:
    charges = Charges(waits=100)

    checked = await check(HandRolledMiddleware(charges), charges, interruptions=7)

    assert checked.steps > 200
    assert checked.disconnects == 7


# Mistakes are reported.


async def test_an_unprotected_route_is_reported_as_run_twice() -> None:
    charges = Charges()

    with pytest.raises(
        AssertionError, match="second request under one key, answered 201 2: 2 effects, expected 1"
    ):
        await check(charges, charges)


async def test_a_replay_with_another_body_is_reported() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match="answered 201 1 again, expected the first answer, 201 1"):
        await check(HandRolledMiddleware(charges, change=lambda body: body + b" again"), charges)


async def test_concurrent_duplicates_that_all_run_are_reported() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match="5 requests at once under one key, answered 5 x 201: 5 effects"):
        await check(HandRolledMiddleware(charges, claims=False), charges)


async def test_a_key_left_in_progress_after_a_disconnect_is_reported() -> None:
    charges = Charges()

    with pytest.raises(
        AssertionError, match=r"left at step \d of \d .* was answered 409 running when it came back"
    ):
        await check(HandRolledMiddleware(charges, stop_on_disconnect=True), charges)


async def test_a_key_freed_by_a_disconnect_after_the_effect_is_reported_as_run_twice() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match=r"left at step \d of \d \(1 effects by then\).*: 2 effects"):
        await check(HandRolledMiddleware(charges, stop_on_disconnect=True, free_on_cancel=True), charges)


async def test_a_key_freed_by_a_cancellation_after_the_effect_is_reported() -> None:
    charges = Charges()

    with pytest.raises(
        AssertionError, match=r"cancelled at step \d of \d \(1 effects .*must not be free before"
    ):
        await check(HandRolledMiddleware(charges, free_on_cancel=True), charges)


async def test_an_answer_without_its_effect_is_reported() -> None:
    charges = Charges()

    with pytest.raises(
        AssertionError, match=r"cancelled at step .*: 0 effects, expected 1; the answer tells of"
    ):
        await check(HandRolledMiddleware(charges, when_cancelled=(200, b"done")), charges)


async def test_a_duplicate_answered_neither_409_nor_with_the_first_answer_is_reported() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match="answered 500 running, expected the first answer, 201"):
        await check(HandRolledMiddleware(charges, running=500), charges)


async def test_a_retry_that_always_fails_after_a_cancellation_is_reported() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match=r"cancelled at .* answered 500: expected the answer, or 409"):
        await check(HandRolledMiddleware(charges, when_cancelled=(500, b"")), charges)


async def test_the_middleware_below_starlettes_base_http_middleware_is_idempotent() -> None:
    charges = Charges()
    protected = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=one_tenant())

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    await check(BaseHTTPMiddleware(protected, dispatch), charges)


async def test_a_first_request_that_fails_is_refused_as_a_test() -> None:
    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"no such route"})

    with pytest.raises(AssertionError, match="must succeed, but was answered 404 no such route"):
        await assert_idempotent(refuses, "POST", "/", effects=lambda: 0)


async def test_an_application_that_raises_is_reported_with_its_exception() -> None:
    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("no database")

    with pytest.raises(AssertionError, match=r"by an exception \(LookupError\('no database'\)\)"):
        await assert_idempotent(raises, "POST", "/", effects=lambda: 0)


async def test_effects_that_do_not_change_with_the_request_are_refused_as_a_test() -> None:
    with pytest.raises(AssertionError, match="count something that the request adds to"):
        await assert_idempotent(Charges(), "POST", "/", effects=lambda: 7)


async def test_a_request_that_is_never_answered_is_reported_after_the_timeout() -> None:
    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match=r"POST / was not answered within 0\.01 s"):
        await assert_idempotent(hangs, "POST", "/", effects=lambda: 0, timeout=0.01)


async def test_json_and_body_together_are_refused() -> None:
    with pytest.raises(TypeError, match="json or body"):
        await assert_idempotent(Charges(), "POST", "/", effects=lambda: 0, json={}, body=b"{}")
