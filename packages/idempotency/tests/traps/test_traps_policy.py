"""Traps 43 to 48: failures, refusals before the handler, waiters, background tasks, and the mark of a replay."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgi_driver import RequestDriver, call, http_scope, key_header
from effects import Charges, PatchedStore, followers, guard, read_body, respond, unavailable
from patience import PATIENCE, until
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route, Router

from idempotency import EXPOSED_HEADERS, IdempotencyMiddleware, Policy, by_header, one_tenant, successes
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.mark.trap(43)
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_the_default_policy_frees_the_key_after_a_transient_failure(
    status: int, any_store: Store, key: str
) -> None:
    charges = Charges(status=status)
    app = guard(charges, any_store)
    assert (await call(app, key=key)).status == status
    charges.status = 201
    again = await call(app, key=key)
    assert (again.status, again.replayed, again.body) == (201, False, b'{"charge": 2}')


@pytest.mark.trap(43)
@pytest.mark.parametrize("status", [400, 402, 404, 409, 410, 418, 422, 501])
async def test_the_default_policy_records_a_permanent_failure(
    status: int, any_store: Store, key: str
) -> None:
    app = guard(Charges(status=status), any_store)
    await call(app, key=key)
    again = await call(app, key=key)
    assert (again.status, again.replayed) == (status, True)


@pytest.mark.trap(43)
@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_at_most_once_records_every_failure(status: int, any_store: Store, key: str) -> None:
    charges = Charges(status=status)
    app = guard(charges, any_store, policy=Policy.at_most_once())
    await call(app, key=key)
    again = await call(app, key=key)
    assert (again.status, again.replayed, charges.runs) == (status, True, 1)


@pytest.mark.trap(43)
async def test_keep_successes_records_successes_only(key: str) -> None:
    charges = Charges(status=422)
    app = guard(charges, MemoryStore(), keep=successes)
    await call(app, key=key)
    charges.status = 201
    assert (await call(app, key=key)).status == 201
    assert (await call(app, key=key)).replayed


class _Failing(Charges):
    """Takes money, then raises."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append(await read_body(receive))
        raise LookupError("after the effect")


@pytest.mark.trap(43)
async def test_the_default_policy_frees_the_key_after_an_exception(any_store: Store, key: str) -> None:
    failing, charges = _Failing(), Charges()
    with pytest.raises(LookupError):
        await call(guard(failing, any_store), key=key)
    assert (await call(guard(charges, any_store), key=key)).status == 201, "at once, not only after the lease"


@pytest.mark.trap(43)
@pytest.mark.parametrize("preset", [Policy.at_most_once, Policy.stripe_v1])
async def test_at_most_once_and_stripe_v1_record_an_exception_as_failed(
    preset: Any, any_store: Store, key: str
) -> None:
    failing = _Failing()
    app = guard(failing, any_store, policy=preset())
    with pytest.raises(LookupError):
        await call(app, key=key)
    for _ in range(2):
        again = await call(app, key=key)
        assert again.status == 500
        assert b"first-run-failed" in again.body
    assert failing.runs == 1


@pytest.mark.trap(44)
@pytest.mark.parametrize("status", [401, 403, 405])
async def test_a_refusal_by_an_inner_layer_frees_the_key(status: int, any_store: Store, key: str) -> None:
    """An authentication layer inside the middleware refuses the first try and accepts the second."""
    charges = Charges(status=status)
    app = guard(charges, any_store)
    assert (await call(app, key=key, headers=[("authorization", "bad")])).status == status
    charges.status = 201
    good = await call(app, key=key, headers=[("authorization", "good")])
    assert (good.status, good.replayed) == (201, False)


@pytest.mark.trap(44)
async def test_a_refusal_by_an_outer_layer_is_never_recorded(any_store: Store, key: str) -> None:
    charges = Charges()
    inside = IdempotencyMiddleware(charges, store=any_store, tenant=by_header("Authorization", stable=True))

    async def authenticate(scope: Any, receive: Any, send: Any) -> None:
        if (b"authorization", b"good") not in scope["headers"]:
            return await respond(send, b"who are you?", status=401)
        return await inside(scope, receive, send)

    assert (await call(authenticate, key=key, headers=[("authorization", "bad")])).status == 401
    assert (await call(authenticate, key=key, headers=[("authorization", "good")])).status == 201


@pytest.mark.trap(44)
@pytest.mark.parametrize("path", ["/nowhere", "/charges/"])
async def test_a_refusal_by_the_router_frees_the_key(path: str, key: str) -> None:
    runs = []

    async def charge(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse("charged", 201)

    app = guard(Starlette(routes=[Route("/charges", charge, methods=["POST"])]), MemoryStore())
    first = await call(app, path=path, key=key)
    assert first.status in {404, 307}
    assert (await call(app, path="/charges", key=key)).status == 201
    assert runs == [1]


@pytest.mark.trap(44)
@pytest.mark.parametrize("guarded", ["outside", "mount", "mounted"])
@pytest.mark.parametrize("kind", [Starlette, Router])
async def test_a_refusal_by_a_mounted_router_frees_the_key(kind: Any, guarded: str, key: str) -> None:
    """The mount has matched by then, and is in the scope as the endpoint."""

    async def charge(request: Request) -> PlainTextResponse:
        return PlainTextResponse("charged", 201)

    layers = [Middleware(IdempotencyMiddleware, store=MemoryStore(), tenant=one_tenant())]
    at = {name: layers if guarded == name else [] for name in ("outside", "mount", "mounted")}
    mounted = kind(middleware=at["mounted"])
    app = Starlette(routes=[Mount("/v1", mounted, middleware=at["mount"])], middleware=at["outside"])
    assert (await call(app, path="/v1/charges", key=key)).status == 404
    mounted.routes.append(Route("/charges", charge, methods=["POST"]))  # as in the next release
    assert (await call(app, path="/v1/charges", key=key)).status == 201
    assert (await call(app, path="/v1/charges", key=key)).replayed


@pytest.mark.trap(44)
async def test_a_404_of_the_handler_is_recorded(key: str) -> None:
    async def missing(request: Request) -> PlainTextResponse:
        return PlainTextResponse("no such account", 404)

    app = guard(Starlette(routes=[Route("/charges", missing, methods=["POST"])]), MemoryStore())
    await call(app, key=key)
    assert (await call(app, key=key)).replayed


@pytest.mark.trap(45)
@pytest.mark.parametrize("processes", [1, 2])
async def test_one_waiter_runs_after_an_owner_that_failed(processes: int, any_store: Store, key: str) -> None:
    async def work(number: int) -> None:
        if number == 1:  # until all wait: for the owner, or in the other process for the one that polls
            await until(lambda: sum(followers(app.engine) for app in apps) == 6 - processes)
        charges.status = 500 if number == 1 else 201

    charges = Charges(work)
    # Each has its own engine, as in a process of its own.
    apps = [guard(charges, any_store, wait=PATIENCE) for _ in range(processes)]
    owner = asyncio.create_task(call(apps[0], key=key))
    await until(lambda: charges.runs != 0)
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*[call(apps[number % processes], key=key) for number in range(5)])
    assert (await owner).status == 500
    assert charges.runs == 2
    assert [answer.body for answer in answers] == [b'{"charge": 2}'] * 5
    assert sorted(answer.replayed for answer in answers) == [False, True, True, True, True]


@pytest.mark.trap(45)
async def test_a_waiter_whose_wait_ends_gets_409_with_retry_after(any_store: Store, key: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    app = guard(charges, any_store, wait=0.1)
    owner = asyncio.create_task(call(app, key=key))
    await until(lambda: charges.runs == 1)
    answers = await asyncio.gather(*[call(app, key=key) for _ in range(3)])
    assert [answer.status for answer in answers] == [409] * 3
    for answer in answers:
        assert 1 <= int(answer.header("retry-after") or 0) <= 30
    go_on.set()
    assert (await owner).status == 201


@pytest.mark.trap(45)
async def test_a_waiter_cancelled_while_it_becomes_leader_hands_over_to_another(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        if number == 1:
            await go_on.wait()
            charges.status = 500
        else:
            charges.status = 201

    charges = Charges(work)
    app = guard(charges, MemoryStore(), wait=PATIENCE)
    owner = asyncio.create_task(call(app, key=key))
    await until(lambda: charges.runs == 1)
    waiters = [asyncio.create_task(call(app, key=key)) for _ in range(3)]
    await until(lambda: followers(app.engine) == 3)
    hand_over = app.engine.single_flight.hand_over

    def hand_over_and_cancel(*args: Any) -> None:
        hand_over(*args)
        waiters[0].cancel()  # at the moment that makes it the leader

    monkeypatch.setattr(app.engine.single_flight, "hand_over", hand_over_and_cancel)
    go_on.set()
    async with asyncio.timeout(30):
        results = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [answer.body for answer in results[1:]] == [b'{"charge": 2}'] * 2
    assert (await owner).status == 500
    assert not app.engine.single_flight, "no flight is left when all are done"


@pytest.mark.trap(46)
async def test_five_hundred_waiters_make_at_most_five_acquire_calls(any_store: Store, key: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    store = PatchedStore(any_store)
    charges = Charges(work)
    app = guard(charges, store, wait=PATIENCE)
    owner = asyncio.create_task(call(app, key=key))
    await until(lambda: charges.runs != 0)
    waiters = [asyncio.create_task(call(app, key=key)) for _ in range(500)]
    await until(lambda: followers(app.engine) == 500)
    go_on.set()
    answers = await asyncio.gather(*waiters)
    assert {answer.body for answer in answers} == {b'{"charge": 1}'}
    assert (await owner).status == 201
    assert store.calls["acquire"] <= 5


@pytest.mark.real_time("the pauses between polls grow in real time")
@pytest.mark.trap(46)
async def test_one_of_a_hundred_waiters_polls_for_all_at_growing_intervals(key: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    shared = MemoryStore()
    store, charges = PatchedStore(shared), Charges(work)
    owner = asyncio.create_task(call(guard(charges, shared), key=key))
    await until(lambda: charges.runs == 1)
    app = guard(charges, store, wait=PATIENCE)
    waiters = [asyncio.create_task(call(app, key=key)) for _ in range(100)]
    await asyncio.sleep(0.6)  # the calls during this time are counted
    assert store.calls["acquire"] <= 100 + 10, "each asks once, then one polls for all"
    go_on.set()
    assert {answer.status for answer in await asyncio.gather(*waiters)} == {201}
    await owner


@pytest.mark.trap(47)
async def test_a_background_task_runs_once_and_does_not_hold_the_key(any_store: Store, key: str) -> None:
    started, go_on, tasks = asyncio.Event(), asyncio.Event(), []

    async def mail() -> None:
        tasks.append(1)
        started.set()
        await go_on.wait()

    async def charge(request: Request) -> JSONResponse:
        return JSONResponse({"charged": True}, background=BackgroundTask(mail))

    app = guard(Starlette(routes=[Route("/charges", charge, methods=["POST"])]), any_store)
    driver = RequestDriver(app, http_scope(headers=key_header(key)))
    driver.send_body(b"{}")
    first = asyncio.create_task(driver.run())
    await started.wait()
    assert [message["type"] for message in driver.messages] == ["http.response.start", "http.response.body"]
    again = await call(app, key=key)
    assert (again.status, again.replayed) == (200, True)
    go_on.set()
    await first
    assert tasks == [1]


@pytest.mark.trap(47)
async def test_a_background_task_that_fails_does_not_undo_the_record(key: str) -> None:
    def fail() -> None:
        raise RuntimeError("no mail today")

    async def charge(request: Request) -> JSONResponse:
        return JSONResponse({"charged": True}, background=BackgroundTask(fail))

    app = guard(Starlette(routes=[Route("/charges", charge, methods=["POST"])]), MemoryStore())
    with pytest.raises(RuntimeError):
        await call(app, key=key)
    assert (await call(app, key=key)).replayed


@pytest.mark.trap(48)
@pytest.mark.parametrize("spelling", [b"idempotency-replayed", b"Idempotency-Replayed"])
@pytest.mark.parametrize("preset", [Policy, Policy.stripe_v1])
async def test_only_a_replay_has_the_replay_header_and_the_applications_own_is_dropped(
    preset: Any, spelling: bytes, key: str
) -> None:
    policy = preset()
    if preset is Policy.stripe_v1:
        spelling = spelling.replace(b"empotency", b"empotent")

    async def impostor(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await respond(
            send, b"ok", headers=[(spelling, b"true"), (b"idempotency-age", b"9"), (b"x-one", b"1")]
        )

    app = guard(impostor, MemoryStore(), policy=policy)
    first, again = await call(app, key=key), await call(app, key=key)
    assert first.values(policy.replay_header) == []
    assert first.values("idempotency-age") == []
    assert again.values(policy.replay_header) == [b"true"]
    assert first.values("x-one") == again.values("x-one") == [b"1"]


@pytest.mark.trap(48)
async def test_a_replay_has_headers_for_age_and_expiry_that_cors_exposes(any_store: Store, key: str) -> None:
    inner = guard(Charges(), any_store, retention=100)
    app = CORSMiddleware(inner, allow_origins=["*"], expose_headers=EXPOSED_HEADERS)
    first = await call(app, key=key, headers=[("origin", "https://shop.example")])
    again = await call(app, key=key, headers=[("origin", "https://shop.example")])
    assert first.header("idempotency-expires-in") == b"100"
    assert 0 <= int(again.header("idempotency-age") or -1) <= 5
    assert 90 <= int(again.header("idempotency-expires-in") or -1) <= 100
    exposed = (again.header("access-control-expose-headers") or b"").decode().lower().split(", ")
    own = {name.decode() for name, _ in again.headers if name.startswith(b"idempotency-")}
    assert len(own) == 3
    assert own <= set(exposed)


@pytest.mark.trap(48)
async def test_a_refusal_has_no_replay_header(key: str) -> None:
    app = guard(Charges(), PatchedStore(MemoryStore(), acquire=unavailable))
    assert (await call(app, key=key)).header("idempotency-replayed") is None
