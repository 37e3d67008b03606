"""Traps 53 to 56 and 59: mounts, methods, nested layers, requests without a key, and sync and async functions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgi_driver import call, http_scope, key_header
from effects import Charges, guard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from idempotency import Policy, idempotent
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

pytestmark = pytest.mark.anyio


@pytest.mark.trap(53)
@pytest.mark.rule("E9")
async def test_the_same_key_under_two_mounts_is_a_mismatch(any_store: Store, key: str) -> None:
    charges = Charges()

    def version() -> Any:
        async def pay(request: Request) -> PlainTextResponse:
            charges.bodies.append(await request.body())
            return PlainTextResponse("paid")

        return guard(Starlette(routes=[Route("/pay", pay, methods=["POST"])]), any_store)

    app = Starlette(routes=[Mount("/v1", version()), Mount("/v2", version())])
    assert (await call(app, path="/v1/pay", key=key)).status == 200
    assert (await call(app, path="/v2/pay", key=key)).status == 422
    assert (await call(app, path="/v1/pay", key=key)).replayed
    assert charges.runs == 1


@pytest.mark.trap(53)
@pytest.mark.parametrize(
    ("path", "raw_path", "root_path"),
    [
        ("/v2/pay", b"/v2/pay", "/v2"),  # ASGI since 2023: the root is part of the path
        ("/pay", b"", "/v2"),  # and before, where the server has no raw path
        ("/pay", b"/v2/pay", "/v2"),
    ],
)
async def test_a_mounts_prefix_is_part_of_the_path_however_the_server_passes_it(
    path: str, raw_path: bytes, root_path: str, key: str
) -> None:
    app = guard(Charges(), MemoryStore())
    await call(app, path="/v1/pay", key=key, root_path="/v1")
    assert (await call(app, path=path, key=key, raw_path=raw_path, root_path=root_path)).status == 422
    await call(app, path="/v2/pay", key=f"{key}-2", root_path="/v2")
    again = await call(app, path=path, key=f"{key}-2", raw_path=raw_path, root_path=root_path)
    assert again.replayed


@pytest.mark.trap(53)
async def test_a_path_with_a_trailing_slash_is_another_path(key: str) -> None:
    app = guard(Charges(), MemoryStore())
    await call(app, path="/charges", key=key)
    assert (await call(app, path="/charges/", key=key)).status == 422


@pytest.mark.trap(54)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
async def test_a_key_is_ignored_on_methods_that_the_policy_does_not_name(method: str, key: str) -> None:
    store, charges = MemoryStore(), Charges()
    app = guard(charges, store)
    for number in (1, 2):
        answer = await call(app, method, key=key)
        assert (answer.replayed, answer.body) == (False, b'{"charge": %d}' % number)
    assert (await call(app, method, headers=[("idempotency-key", '"malformed')])).status == 201
    assert not (await store.scan()).records


@pytest.mark.trap(54)
async def test_a_keyed_head_request_is_replayed_without_a_body(key: str) -> None:
    app = guard(Charges(), MemoryStore(), methods=frozenset({"HEAD"}))
    await call(app, "HEAD", key=key)
    again = await call(app, "HEAD", key=key)
    assert (again.replayed, again.body, again.header("content-length")) == (True, b"", b"13")


@pytest.mark.trap(54)
@pytest.mark.parametrize("kind", ["websocket", "lifespan", "something-new"])
async def test_scopes_other_than_http_reach_the_application_unchanged(kind: str) -> None:
    seen: list[Any] = []

    async def app(*triple: Any) -> None:
        seen.append(triple)

    async def receive() -> Any:
        raise AssertionError("the middleware must not receive")

    scope = http_scope(headers=[("idempotency-key", '"malformed')]) | {"type": kind}
    await guard(app, MemoryStore(), required=True)(scope, receive, receive)
    assert seen == [(scope, receive, receive)]
    assert seen[0][0] is scope


@pytest.mark.trap(55)
@pytest.mark.rule("E10")
async def test_two_middlewares_on_one_route_share_one_claim(any_store: Store, key: str) -> None:
    charges = Charges()
    app = guard(guard(charges, any_store), any_store)
    async with asyncio.timeout(30):
        first, again = await call(app, key=key), await call(app, key=key)
    assert (first.status, again.status, again.replayed, charges.runs) == (201, 201, True, 1)
    assert charges.bodies == [b"{}"]


@pytest.mark.trap(55)
async def test_a_middleware_and_a_decorator_on_one_route_are_two_operations(
    any_store: Store, key: str
) -> None:
    charged = []

    @idempotent(store=any_store, operation="charge", key=lambda name: name)
    async def charge(name: str) -> int:
        charged.append(name)
        return len(charged)

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(await charge(request.headers["idempotency-key"].strip('"'))))

    app = guard(Starlette(routes=[Route("/charges", endpoint, methods=["POST"])]), any_store)
    async with asyncio.timeout(30):
        first, again = await call(app, key=key), await call(app, key=key)
        assert await charge(key) == 1, "the function's own key is kept too"
    assert (first.body, again.body, again.replayed) == (b"1", b"1", True)
    assert charged == [key]


@pytest.mark.trap(55)
async def test_a_request_that_a_handler_sends_with_its_own_key_is_refused(key: str) -> None:
    answers = []

    async def work(number: int) -> None:
        answers.append(await call(app, key=key))
        answers.append(await call(app, path="/refunds", key=key))

    charges = Charges(work)
    app = guard(charges, MemoryStore())
    assert (await call(app, key=key)).status == 201
    assert [answer.status for answer in answers] == [409, 422]
    assert charges.runs == 1


@pytest.mark.trap(55)
async def test_a_scope_that_is_served_twice_claims_each_time(key: str) -> None:
    """A dispatcher that tries one application after the other gives both the same scope."""
    charges = Charges(status=503)
    app = guard(guard(charges, MemoryStore()), MemoryStore())

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            pending = [{"type": "http.request", "body": b"{}"}]

            async def again() -> Any:
                return pending.pop()  # noqa: B023

            await app(scope, again, sent.append_message)
            charges.status = 201

    class Sent(list[Any]):
        async def append_message(self, message: Any) -> None:
            self.append(message)

    sent = Sent()
    await dispatch(http_scope(headers=key_header(key)), None, None)
    assert [message["status"] for message in sent if "status" in message] == [503, 201]
    assert any(name == b"idempotency-expires-in" for name, _ in sent[2]["headers"]), (
        "the second run is recorded"
    )


@pytest.mark.trap(56)
async def test_two_equal_requests_without_a_key_are_both_run(any_store: Store) -> None:
    charges = Charges()
    app = guard(charges, any_store)
    first, second = await call(app, body=b"same"), await call(app, body=b"same")
    assert (first.body, second.body) == (b'{"charge": 1}', b'{"charge": 2}')


@pytest.mark.trap(56)
async def test_a_request_without_a_key_is_refused_where_one_is_required(key: str) -> None:
    charges = Charges()
    answer = await call(guard(charges, MemoryStore(), policy=Policy(required=True)))
    assert (answer.status, charges.runs) == (400, 0)
    assert b"missing-key" in answer.body


@pytest.mark.trap(59)
async def test_a_sync_function_with_an_async_store_is_refused_and_the_reverse() -> None:
    async def coroutine_function(name: str) -> int:
        return 1

    def plain_function(name: str) -> int:
        return 1

    for store, function in ((SyncMemoryStore(), coroutine_function), (MemoryStore(), plain_function)):
        with pytest.raises(TypeError):
            idempotent(store=store, operation="charge", key=lambda name: name)(function)  # type: ignore[arg-type,call-overload]


@pytest.mark.trap(59)
async def test_a_sync_function_works_inside_a_running_loop(key: str) -> None:
    charged = []

    @idempotent(store=SyncMemoryStore(), operation="charge", key=lambda name: name)
    def charge(name: str) -> int:
        charged.append(name)
        return len(charged)

    async with asyncio.timeout(30):
        assert charge(key) == charge(key) == 1
        assert await asyncio.to_thread(charge, key) == 1
    assert charged == [key]
