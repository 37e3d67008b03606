"""Faults on the wire, over bare sockets to real servers: what breaks before, in and after a request."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from effects import Charges, guard, read_body, respond
from patience import until
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
    caplog.set_level(logging.CRITICAL)  # servers log what these tests provoke
    return str(request.param)


class Site:
    """A charging application behind the middleware, served."""

    def __init__(self, port: int, charges: Charges, store: MemoryStore) -> None:
        self.port = port
        self.charges = charges
        self.store = store

    async def is_free(self) -> bool:
        """Whether no key was used."""
        return not (await self.store.scan()).records

    async def send(self, data: bytes) -> Any:
        """The answer to these bytes, on a connection of their own."""
        async with await Wire.connect(self.port) as wire:
            await wire.send(data)
            return await wire.response()


@pytest.fixture
async def site(server: str, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A guarded application; a parameter is the time that its requests' bodies may take."""
    charges, store = Charges(), MemoryStore()
    app = guard(charges, store, max_request_bytes=100_000, body_timeout=getattr(request, "param", 30.0))
    async with serve(app, server) as port:
        yield Site(port, charges, store)


Work = Callable[[int], Awaitable[None]]


# Before the body is whole.


async def test_truncated_body(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        await wire.send(request("/charges", "k", b"x" * 100)[:-50])
    await asyncio.sleep(0.05)
    assert site.charges.runs == 0
    assert await site.is_free()
    assert (await post(site.port, key="k")).status == 201


@pytest.mark.parametrize("site", [0.2], indirect=True)
async def test_slow_body(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        await wire.send(request("/charges", "k", b"x" * 100)[:-50])
        answer = await wire.response()
    assert answer.status == 408
    assert answer.values("connection") == [b"close"]
    assert await site.is_free()


async def test_body_that_trickles_in_time(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        whole = request("/charges", "k", b"x" * 20)
        for start in range(0, len(whole), 40):
            await wire.send(whole[start : start + 40])
            await asyncio.sleep(0.005)
        assert (await wire.response()).status == 201
    assert site.charges.bodies == [b"x" * 20]


async def test_huge_body_is_refused_as_soon_as_it_begins(site: Site) -> None:
    head = request("/charges", "k", b"").replace(b"content-length: 0", b"content-length: 67108864")
    answer = await site.send(head + b"x")  # and not another byte of the 64 MiB
    assert answer.status == 413
    assert answer.values("connection") == [b"close"]
    assert await site.is_free()


async def test_endless_chunks_are_cut_off(site: Site) -> None:
    head = request("/charges", "k", b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    async with await Wire.connect(site.port) as wire:
        await wire.send(head + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 100)  # and no last one
        async with asyncio.timeout(30):
            answer = await wire.response()
        assert answer.status == 413
    assert site.charges.runs == 0
    assert await site.is_free()


async def test_huge_body_without_a_key_is_the_applications_affair(site: Site) -> None:
    assert (await post(site.port, body=b"x" * 200_000)).status == 201
    assert len(site.charges.bodies[0]) == 200_000


async def test_body_at_the_limit(site: Site) -> None:
    assert (await post(site.port, key="k", body=b"x" * 100_000)).status == 201
    assert (await post(site.port, key="k", body=b"x" * 100_000)).replayed


# The request's framing.


async def test_chunked_is_the_same_request(site: Site) -> None:
    assert (await post(site.port, key="k", body=b"onetwo")).status == 201
    head = request("/charges", "k", b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    again = await site.send(head + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert (again.status, again.replayed) == (201, True)


async def test_expect_continue(site: Site) -> None:
    head = request("/charges", "k", b"x" * 10, headers=[("expect", "100-continue")])[:-10]
    async with await Wire.connect(site.port) as wire:
        await wire.send(head)
        assert (await wire.head())[0] == 100
        await wire.send(b"x" * 10)
        assert (await wire.response()).status == 201
    assert site.charges.bodies == [b"x" * 10]


async def test_pipelined_duplicates_have_one_effect(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        await wire.send(request("/charges", "k", b"{}") * 3)
        answers = [await wire.response() for _ in range(3)]
    assert [answer.status for answer in answers] == [201] * 3
    assert [answer.replayed for answer in answers] == [False, True, True]
    assert site.charges.runs == 1


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


async def test_kept_alive_connection_serves_a_refusal_and_goes_on(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        await wire.send(request("/charges", None, b"{}", headers=[("idempotency-key", '"open')]))
        assert (await wire.response()).status == 400
        await wire.send(request("/charges", "k", b"{}"))
        assert (await wire.response()).status == 201


@pytest.mark.parametrize(
    "server", ["uvicorn-h11", "hypercorn", "granian"], indirect=True
)  # httptools makes it a header
async def test_key_in_a_trailer_is_no_key(site: Site) -> None:
    head = request("/charges", None, b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    for number in (1, 2):
        answer = await site.send(head + b'2\r\n{}\r\n0\r\nidempotency-key: "k"\r\n\r\n')
        assert (answer.status, answer.body) == (201, b'{"charge": %d}' % number)
    assert await site.is_free()


# The key on the wire.


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(['"a"', '"b"'], id="duplicate_header"),
        pytest.param(['"a"', '"a"'], id="repeated_header"),
        pytest.param(['"a", "b"'], id="list_header"),
        pytest.param([""], id="empty_key"),
        pytest.param(['""'], id="quoted_empty_key"),
        pytest.param(['"a'], id="malformed_sf_string"),
        pytest.param(["caf\u00e9"], id="non_ascii_key"),
        pytest.param(["k" * 10_000], id="huge_key"),
    ],
)
async def test_unusable_key(lines: list[str], site: Site) -> None:
    answer = await post(site.port, headers=[("idempotency-key", line) for line in lines])
    assert answer.status in {400, 431}
    assert site.charges.runs == 0
    assert await site.is_free()


async def test_quoted_and_bare(site: Site) -> None:
    assert (await post(site.port, key="k")).status == 201
    assert (await post(site.port, headers=[("Idempotency-Key", "k")])).replayed


async def test_header_name_in_any_case(site: Site) -> None:
    for name, replayed in (("IDEMPOTENCY-KEY", False), ("idempotency-KEY", True)):
        assert (await post(site.port, headers=[(name, '"k"')])).replayed == replayed


async def test_store_injection(site: Site) -> None:
    keys = ["a:b", "{a}", "a*", "../../a", "a;FLUSHALL", "a'--", "%61"]
    for key in keys:
        assert (await post(site.port, key=key)).status == 201
    assert site.charges.runs == len(keys)
    for record in (await site.store.scan()).records:
        assert not set(record.key) & set("{}:*/;' ")


# Duplicates.


async def test_concurrent_same_key(server: str) -> None:
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


async def test_concurrent_same_key_that_waits(server: str) -> None:
    async def work(number: int) -> None:
        await asyncio.sleep(0.1)

    charges = Charges(work)
    async with serve(guard(charges, MemoryStore(), wait=5), server) as port:
        answers = await asyncio.gather(*[post(port, key="k") for _ in range(20)])
    assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"charge": 1}')}
    assert charges.runs == 1


async def test_prefer_wait(server: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    app = guard(charges, MemoryStore(), prefer_wait=5)
    async with serve(app, server) as port:
        first = asyncio.create_task(post(port, key="k"))
        await until(lambda: charges.runs == 1)
        assert (await post(port, key="k")).status == 409, "without the preference nobody waits"
        waiting = asyncio.create_task(post(port, key="k", headers=[("prefer", "respond-async, wait=10")]))
        await asyncio.sleep(0.05)
        go_on.set()
        assert (await waiting).replayed
        await first


async def test_waiter_that_leaves_does_no_harm(server: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    async with serve(guard(charges, MemoryStore(), wait=5), server) as port:
        first = asyncio.create_task(post(port, key="k"))
        await until(lambda: charges.runs == 1)
        async with await Wire.connect(port) as wire:
            await wire.send(request("/charges", "k", b"{}"))
            await asyncio.sleep(0.05)
            wire.reset()
        last = asyncio.create_task(post(port, key="k"))
        await asyncio.sleep(0.05)
        go_on.set()
        assert (await first).status == 201
        assert (await last).replayed
    assert charges.runs == 1


async def test_client_that_leaves_while_its_answer_is_on_the_way(server: str) -> None:
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


# What makes two requests the same.


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(b'{"a":1}', b'{"a":1.0}', id="one_and_one_point_nought"),
        pytest.param(b"9007199254740992", b"9007199254740993", id="beyond_double_precision"),
        pytest.param("\u00e9".encode(), "e\u0301".encode(), id="nfc_and_nfd"),
        pytest.param(b"0.0", b"-0.0", id="signed_zero"),
        pytest.param(b"{}", b"{ }", id="white_space"),
        pytest.param(b"{}", b"{}\n", id="line_end"),
        pytest.param(b"{}", b"\xef\xbb\xbf{}", id="byte_order_mark"),
        pytest.param(b"{}", b"", id="empty"),
    ],
)
async def test_body_is_bytes(one: bytes, two: bytes, site: Site) -> None:
    assert (await post(site.port, key="k", body=one)).status == 201
    assert (await post(site.port, key="k", body=two)).status == 422
    assert (await post(site.port, key="k", body=one)).replayed


@pytest.mark.parametrize(
    ("path", "method"),
    [
        pytest.param("/refunds", "POST", id="other_route"),
        pytest.param("/charges?dry=1", "POST", id="other_query"),
        pytest.param("/charges", "PATCH", id="other_method"),
        pytest.param("/Charges", "POST", id="other_case"),
        pytest.param("/charges/", "POST", id="trailing_slash"),
        pytest.param("/charges/../charges", "POST", id="dot_segments"),
        pytest.param("/ch%61rges", "POST", id="percent_encoding"),
    ],
)
@pytest.mark.rule("E9")
async def test_other_operation(path: str, method: str, site: Site) -> None:
    await post(site.port, key="k")
    assert (await post(site.port, path, key="k", method=method)).status == 422
    assert site.charges.runs == 1


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        pytest.param("content-encoding", "identity", "gzip", id="content_encoding"),
        pytest.param("content-type", "application/json", "text/plain", id="content_type"),
    ],
)
async def test_other_representation(name: str, one: str, two: str, site: Site) -> None:
    await post(site.port, key="k", headers=[(name, one)])
    assert (await post(site.port, key="k", headers=[(name, two)])).status == 422
    assert (await post(site.port, key="k", headers=[(name, one)])).replayed


async def test_compressed_body_is_not_undone(site: Site) -> None:
    headers = [("content-encoding", "gzip")]
    body = gzip.compress(b"{}", mtime=0)
    assert (await post(site.port, key="k", body=body, headers=headers)).status == 201
    assert (await post(site.port, key="k", body=body, headers=headers)).replayed
    assert site.charges.bodies == [body]


async def test_accept_encoding_and_accept_do_not_count(site: Site) -> None:
    await post(site.port, key="k", headers=[("accept-encoding", "gzip"), ("accept", "application/json")])
    assert (await post(site.port, key="k", headers=[("accept-encoding", "br"), ("accept", "*/*")])).replayed


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 90_000, id="deep_nesting"),
        pytest.param(b'{"a": NaN, "b": 1e999999}', id="numbers_beyond_all"),
        pytest.param(rb'{"a": "\ud800"}', id="lone_surrogate"),
        pytest.param(b'{"a": 1, "a": 2}', id="duplicate_names"),
        pytest.param(b"1" * 90_000, id="endless_number"),
        pytest.param(b"\x00\xff\xfe", id="not_text"),
    ],
)
@pytest.mark.parametrize("fingerprint", ["exact_bytes", "canonical_json", "ignoring"])
async def test_odd_json(body: bytes, fingerprint: str) -> None:
    import idempotency

    function = getattr(idempotency, fingerprint)
    charges = Charges(status=400)  # the application's own verdict reaches the client, and is kept
    app = guard(charges, MemoryStore(), fingerprint=function("id") if fingerprint == "ignoring" else function)
    async with serve(app, "uvicorn-h11") as port:
        for replayed in (False, True):
            answer = await post(port, key="k", body=body)
            assert (answer.status, answer.replayed) == (400, replayed)
        assert (await post(port, key="k", body=body + b" ")).status in {400, 422}
    assert charges.runs == 1


# Whose key it is.


async def test_other_principal_and_key_oracle(server: str) -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_header("X-API-Key", stable=True))
    async with serve(app, server) as port:
        for user in ("alice", "bob"):
            for replayed in (False, True):
                answer = await post(port, key="k", body=user.encode(), headers=[("x-api-key", user)])
                assert (answer.status, answer.replayed) == (201, replayed)
        assert (await post(port, key="k")).status == 400
    assert charges.runs == 2


async def test_scope_concatenation(server: str) -> None:
    charges = Charges()
    app = IdempotencyMiddleware(
        charges, store=MemoryStore(), tenant=lambda scope: dict(scope["headers"])[b"x-user"].decode()
    )
    async with serve(app, server) as port:
        for user, key in (("a", "b:x"), ("a:b", "x"), ("a%3Ab", "x"), ("", "a:b:x")):
            assert (await post(port, key=key, headers=[("x-user", user)])).status == 201
    assert charges.runs == 4


async def test_memory_bounded_store_refuses_rather_than_forgets_a_claim(server: str) -> None:
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


# The answer.


async def test_replayed_headers(server: str) -> None:
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


async def test_get_with_key_and_put_and_delete_are_untouched(site: Site) -> None:
    for method in ("GET", "PUT", "DELETE"):
        for _ in range(2):
            assert not (await post(site.port, key="k", method=method)).replayed
    assert site.charges.runs == 6
    assert await site.is_free()


async def test_oversized_answer(server: str) -> None:
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


async def test_problem_documents_say_what_to_do_and_link_to_more(server: str) -> None:
    app = guard(Charges(), MemoryStore(), policy=Policy(documentation_url="https://docs.example/keys"))
    async with serve(app, server) as port:
        await post(port, key="k")
        answer = await post(port, key="k", body=b"other")
    assert answer.values("link") == [b'<https://docs.example/keys#key-reused>; rel="describedby"']
    assert answer.values("cache-control") == [b"no-store"]
    assert answer.values("content-type") == [b"application/problem+json"]
    assert b"urn:problem:idempotency:key-reused" in answer.body
    assert b"send this one with a new key" in answer.body
