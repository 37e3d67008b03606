"""`assert_idempotent` passes what is idempotent, and names the mistakes that hand-rolled middlewares make."""

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
    """An ASGI application that charges once for each request it serves, in the middle of some waiting."""

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


class Handmade:
    """
    A hand-rolled middleware, right but for what a test breaks: `answers` by key, None while the first runs.

    Everything around it is a setting, so that each test shows the one mistake that it makes.
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


# What is idempotent passes.


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


async def test_duplicates_that_wait_for_the_first_answer_are_idempotent_and_retries_end_with_patience() -> (
    None
):
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=one_tenant(), policy=Policy(wait=60.0))

    await check(app, charges, interruptions=4, patience=0.05)


async def test_a_right_middleware_of_another_kind_passes_too() -> None:
    charges = Charges()

    checked = await check(Handmade(charges), charges, twins=3)

    assert checked.twins == 3


async def test_a_request_may_have_several_effects() -> None:
    charges = Charges()

    await assert_idempotent(Handmade(charges), "POST", "/", effects=lambda: 3 * charges.charged)


async def test_long_runs_are_interrupted_at_steps_spread_over_them() -> None:
    charges = Charges(waits=100)

    checked = await check(Handmade(charges), charges, interruptions=7)

    assert checked.steps > 200
    assert checked.disconnects == 7


# What is not is named.


async def test_an_unprotected_route_runs_twice() -> None:
    charges = Charges()

    with pytest.raises(
        AssertionError, match="second request under one key, answered 201 2: 2 effects, expected 1"
    ):
        await check(charges, charges)


async def test_a_replay_that_says_something_else_is_found() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match="answered 201 1 again, expected the first answer, 201 1"):
        await check(Handmade(charges, change=lambda body: body + b" again"), charges)


async def test_a_check_before_the_act_lets_concurrent_duplicates_run() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match="5 requests at once under one key, answered 5 x 201: 5 effects"):
        await check(Handmade(charges, claims=False), charges)


async def test_a_run_that_stops_with_its_client_leaves_the_key_in_progress() -> None:
    charges = Charges()

    with pytest.raises(
        AssertionError, match=r"left at step \d of \d .* was answered 409 running when it came back"
    ):
        await check(Handmade(charges, stop_on_disconnect=True), charges)


async def test_a_run_that_stops_with_its_client_and_frees_the_key_runs_twice() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match=r"left at step \d of \d \(1 effects by then\).*: 2 effects"):
        await check(Handmade(charges, stop_on_disconnect=True, free_on_cancel=True), charges)


async def test_a_cancelled_run_that_frees_its_key_runs_twice() -> None:
    charges = Charges()

    with pytest.raises(
        AssertionError, match=r"cancelled at step \d of \d \(1 effects .*must not be free before"
    ):
        await check(Handmade(charges, free_on_cancel=True), charges)


async def test_an_answer_without_its_effect_is_found() -> None:
    charges = Charges()

    with pytest.raises(
        AssertionError, match=r"cancelled at step .*: 0 effects, expected 1; the answer tells of"
    ):
        await check(Handmade(charges, when_cancelled=(200, b"done")), charges)


async def test_duplicates_answered_with_anything_but_409_or_the_first_answer_are_found() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match="answered 500 running, expected the first answer, 201"):
        await check(Handmade(charges, running=500), charges)


async def test_a_retry_that_fails_for_good_after_a_cancellation_is_found() -> None:
    charges = Charges()

    with pytest.raises(AssertionError, match=r"cancelled at .* answered 500: expected the answer, or 409"):
        await check(Handmade(charges, when_cancelled=(500, b"")), charges)


async def test_starlettes_base_class_around_the_middleware_does_no_harm() -> None:
    charges = Charges()
    protected = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=one_tenant())

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    await check(BaseHTTPMiddleware(protected, dispatch), charges)


async def test_a_request_that_fails_to_begin_with_is_no_test() -> None:
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


async def test_effects_that_do_not_count_the_request_are_no_test() -> None:
    with pytest.raises(AssertionError, match="count something that the request adds to"):
        await assert_idempotent(Charges(), "POST", "/", effects=lambda: 7)


async def test_a_request_that_is_never_answered_is_found() -> None:
    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match=r"POST / was not answered within 0\.01 s"):
        await assert_idempotent(hangs, "POST", "/", effects=lambda: 0, timeout=0.01)


async def test_two_bodies_are_refused() -> None:
    with pytest.raises(TypeError, match="json or body"):
        await assert_idempotent(Charges(), "POST", "/", effects=lambda: 0, json={}, body=b"{}")
