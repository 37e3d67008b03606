"""The middleware behind real ASGI servers, over plain sockets: duplicates, disconnects, tenants, response headers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from effects import Charges, RequestCounter, followers, guard, read_body, respond
from patience import PATIENCE, until
from servers import SERVERS, serve
from wire import Wire, post, request

from idempotency import IdempotencyMiddleware, Policy, by_header, current_claim
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> str:
    caplog.set_level(logging.CRITICAL)  # servers log the disconnects that these tests make
    return str(request.param)


Work = Callable[[int], Awaitable[None]]


# Pipelining.


async def test_pipelined_request_without_a_key_runs_under_no_claim(server: str) -> None:
    """A server may begin the next request inside the last send of the one before it."""
    claims: list[Any] = []

    async def work(number: int) -> None:
        claims.append(current_claim())

    async with serve(guard(Charges(work), MemoryStore()), server) as port, await Wire.connect(port) as wire:
        await wire.send(request("/charges", "k", b"{}") + request("/charges", None, b"{}"))
        assert [(await wire.response()).status for _ in range(2)] == [201, 201]
    assert claims[0] is not None
    assert claims[1] is None


# Duplicates.


async def test_concurrent_duplicates_get_409_with_retry_after(server: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    async with serve(guard(charges, MemoryStore()), server) as port:
        duplicates = [asyncio.create_task(post(port, key="k")) for _ in range(20)]
        await until(lambda: sum(duplicate.done() for duplicate in duplicates) >= 19)
        go_on.set()
        answers = await asyncio.gather(*duplicates)
    assert sorted(answer.status for answer in answers) == [201] + [409] * 19
    assert charges.runs == 1
    for answer in answers:
        if answer.status == 409:
            assert 1 <= int(answer.values("retry-after")[0]) <= 30


async def test_waiting_duplicates_get_the_first_response(server: str) -> None:
    async def work(number: int) -> None:
        await until(lambda: followers(app.engine) == 19)

    charges = Charges(work)
    app = guard(charges, MemoryStore(), wait=PATIENCE)
    async with serve(app, server) as port:
        answers = await asyncio.gather(*[post(port, key="k") for _ in range(20)])
    assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"charge": 1}')}
    assert charges.runs == 1


async def test_duplicate_waits_only_if_it_prefers_to(server: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    app = guard(charges, MemoryStore(), prefer_wait=5)
    async with serve(app, server) as port:
        first = asyncio.create_task(post(port, key="k"))
        await until(lambda: charges.runs == 1)
        assert (await post(port, key="k")).status == 409, "without the preference a duplicate does not wait"
        waiting = asyncio.create_task(post(port, key="k", headers=[("prefer", "respond-async, wait=10")]))
        await until(lambda: followers(app.engine) == 1)
        go_on.set()
        assert (await waiting).replayed
        await first


async def test_disconnect_of_a_waiting_duplicate_affects_no_other_request(server: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    app = guard(charges, MemoryStore(), wait=PATIENCE)
    requests = RequestCounter(app)
    async with serve(requests, server) as port:
        first = asyncio.create_task(post(port, key="k"))
        await until(lambda: charges.runs == 1)
        async with await Wire.connect(port) as wire:
            await wire.send(request("/charges", "k", b"{}"))
            await until(lambda: followers(app.engine) == 1)
            wire.reset()
        last = asyncio.create_task(post(port, key="k"))
        await until(lambda: requests.started == 3 and followers(app.engine) >= 1)
        go_on.set()
        assert (await first).status == 201
        assert (await last).replayed
    assert charges.runs == 1


async def test_response_is_replayed_after_the_client_reset_the_connection_while_receiving_it(
    server: str,
) -> None:
    async def large(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        await read_body(receive)
        runs.append(1)
        await respond(send, [b"x" * 100_000] * 10)

    runs: list[int] = []
    async with serve(guard(large, MemoryStore()), server) as port:
        async with await Wire.connect(port) as wire:
            await wire.send(request("/charges", "k", b"{}"))
            await wire.head()
            wire.reset()
        again = await post(port, key="k")
    assert (again.status, len(again.body), again.replayed) == (200, 1_000_000, True)
    assert runs == [1]


# Request bodies.


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 90_000, id="deep_nesting"),
        pytest.param(b'{"a": NaN, "b": 1e999999}', id="numbers_out_of_range"),
        pytest.param(rb'{"a": "\ud800"}', id="lone_surrogate"),
        pytest.param(b'{"a": 1, "a": 2}', id="duplicate_names"),
        pytest.param(b"1" * 90_000, id="endless_number"),
        pytest.param(b"\x00\xff\xfe", id="not_text"),
    ],
)
@pytest.mark.parametrize("fingerprint", ["exact_bytes", "canonical_json", "ignoring"])
async def test_unusual_json_body_runs_once_and_its_response_is_replayed(
    body: bytes, fingerprint: str
) -> None:
    import idempotency

    function = getattr(idempotency, fingerprint)
    charges = Charges(status=400)  # the response of the application reaches the client, and is kept
    app = guard(charges, MemoryStore(), fingerprint=function("id") if fingerprint == "ignoring" else function)
    async with serve(app, "uvicorn-h11") as port:
        for replayed in (False, True):
            answer = await post(port, key="k", body=body)
            assert (answer.status, answer.replayed) == (400, replayed)
        assert (await post(port, key="k", body=body + b" ")).status in {400, 422}
    assert charges.runs == 1


# Tenants and keys.


async def test_same_key_of_another_tenant_runs_and_a_missing_tenant_is_refused(server: str) -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_header("X-API-Key", stable=True))
    async with serve(app, server) as port:
        for user in ("alice", "bob"):
            for replayed in (False, True):
                answer = await post(port, key="k", body=user.encode(), headers=[("x-api-key", user)])
                assert (answer.status, answer.replayed) == (201, replayed)
        assert (await post(port, key="k")).status == 400
    assert charges.runs == 2


async def test_tenants_and_keys_that_concatenate_alike_have_distinct_records(server: str) -> None:
    charges = Charges()
    app = IdempotencyMiddleware(
        charges, store=MemoryStore(), tenant=lambda scope: dict(scope["headers"])[b"x-user"].decode()
    )
    async with serve(app, server) as port:
        for user, key in (("a", "b:x"), ("a:b", "x"), ("a%3Ab", "x"), ("", "a:b:x")):
            assert (await post(port, key=key, headers=[("x-user", user)])).status == 201
    assert charges.runs == 4


async def test_full_memory_store_refuses_a_new_key_with_503_and_keeps_running_claims(server: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    async with serve(guard(charges, MemoryStore(max_records=2)), server) as port:
        running = [asyncio.create_task(post(port, key=f"k{number}")) for number in range(2)]
        await until(lambda: charges.runs >= 2)
        refused = await post(port, key="k2")
        assert (refused.status, refused.values("retry-after") != []) == (503, True)
        go_on.set()
        assert {(await answer).status for answer in running} == {201}
        assert (await post(port, key="k2")).status == 201


# The response.


async def test_replay_repeats_response_headers_except_those_of_one_caller_or_connection(server: str) -> None:
    kept = [
        (b"cache-control", b"private, no-store"),
        (b"etag", b'"v1"'),
        (b"location", b"/charges/1"),
        (b"link", b"</a>; rel=next"),
        (b"link", b"</b>; rel=prev"),
        (b"retry-after", b"120"),
        (b"vary", b"accept"),
        (b"content-language", b"de"),
        (b"x-empty", b""),
    ]
    dropped = [
        (b"set-cookie", b"a=1"),
        (b"www-authenticate", b"Basic"),
        (b"clear-site-data", b'"cookies"'),
        (b"trailer", b"x"),
        (b"te", b"trailers"),
        (b"proxy-authenticate", b"Basic"),
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        await read_body(receive)
        await respond(send, b"ok", headers=[*kept, *dropped])

    async with serve(guard(app, MemoryStore()), server) as port:
        first, again = await post(port, key="k"), await post(port, key="k")
    assert [pair for pair in first.headers if pair in kept] == kept
    assert [pair for pair in again.headers if pair in kept] == kept
    names = {name for name, _ in dropped}
    assert {name for name, _ in first.headers} >= names
    assert not {name for name, _ in again.headers} & names
    assert len(again.values("date")) <= 1


async def test_oversized_response_is_sent_whole_and_its_duplicate_gets_409(server: str) -> None:
    runs: list[int] = []

    async def large(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        await read_body(receive)
        runs.append(1)
        await respond(send, [b"x" * 65_536] * 4)

    async with serve(guard(large, MemoryStore(), max_response_bytes=100_000), server) as port:
        first, again = await post(port, key="k"), await post(port, key="k")
    assert (first.status, len(first.body)) == (200, 262_144)
    assert (again.status, runs) == (409, [1])
    assert again.values("content-type") == [b"application/problem+json"]


async def test_problem_response_states_the_remedy_and_links_to_documentation(server: str) -> None:
    app = guard(Charges(), MemoryStore(), policy=Policy(documentation_url="https://docs.example/keys"))
    async with serve(app, server) as port:
        await post(port, key="k")
        answer = await post(port, key="k", body=b"other")
    assert answer.values("link") == [b'<https://docs.example/keys#key-reused>; rel="describedby"']
    assert answer.values("cache-control") == [b"no-store"]
    assert answer.values("content-type") == [b"application/problem+json"]
    assert b"urn:problem:idempotency:key-reused" in answer.body
    assert b"send this one with a new key" in answer.body
