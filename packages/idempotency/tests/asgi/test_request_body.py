"""Refused uploads over plain sockets, trailers, and bodies that a server lost."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from asgi_driver import RequestDriver, call, http_scope, key_header
from effects import Charges, RequestCounter, guard
from patience import until
from servers import SERVERS, serve
from wire import Wire, post, request

from idempotency import IdempotencyMiddleware, Policy, by_header
from idempotency.asgi import LateClaim, claim
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

MIB = 1_048_576


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def upload(port: int, head: bytes, size: int, *, chunked: bool = False) -> bytes:
    """Returns what a client reads that first writes its whole request; raises on a reset."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head)
        piece = b"x" * 65_536
        for _ in range(size // len(piece)):
            connection.sendall(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        answer = b""
        while b"}" not in answer:
            received = connection.recv(65_536)
            assert received, answer
            answer += received
        return answer


# granian closes a connection as soon as the answer's bytes are complete, whatever the application still reads: there
# the client may see a broken pipe (docs/concepts.md says so).
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", [server for server in SERVERS if server != "granian"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("refusal", ["too large", "bad key", "no tenant"])
@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
async def test_a_client_reads_why_its_upload_was_refused(
    server: str, framing: str, refusal: str, late: bool
) -> None:
    charges, size = Charges(), 12 * MIB
    app = IdempotencyMiddleware(
        charges,
        store=MemoryStore(),
        tenant=by_header("X-User") if refusal == "no tenant" else lambda scope: "",
    )
    if late:
        app = LateClaim(_claiming(charges, by_header("X-User"), refusal), store=MemoryStore())
    length = b"transfer-encoding: chunked" if framing == "chunked" else b"content-length: %d" % size
    head = request("/charges", "k", b"").replace(b"content-length: 0", length)
    if refusal == "bad key":
        head = head.replace(b'"k"', b'"open')
    async with serve(app, server) as port:
        answer = await asyncio.to_thread(upload, port, head, size, chunked=framing == "chunked")
    status = b"413" if refusal == "too large" else b"400"
    assert answer.split(b" ", 2)[1] == status
    assert b"urn:problem:idempotency:" in answer
    assert charges.runs == 0


def _claiming(charges: Charges, tenant: Any, refusal: str) -> Any:
    """*charges*, claimed by the application before it reads the body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, (lambda: tenant(scope)) if refusal == "no tenant" else "alice")
        await charges(scope, receive, send)

    return app


async def test_an_upload_without_the_key_that_its_route_requires_is_read_by_a_late_claim_too() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "alice", Policy(required=True))

    parts = [{"type": "http.request", "body": b"x" * 10, "more_body": more} for more in (False, True)]
    sent: list[Any] = []

    async def receive() -> Any:
        assert sent, "the answer comes first: the client may wait for it"
        return parts.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    await LateClaim(app, store=MemoryStore())(http_scope(headers=[("content-length", "20")]), receive, send)
    assert (sent[0]["status"], sent[-1].get("more_body", False), parts) == (400, False, [])


@pytest.mark.parametrize(
    "headers", [[], [("content-length", "0")], [("expect", "100-continue"), ("content-length", "9")]]
)
async def test_a_late_claim_reads_nothing_of_a_body_that_will_not_come(
    headers: list[tuple[str, str]],
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "alice", Policy(required=True))

    answer = await RequestDriver(LateClaim(app, store=MemoryStore()), http_scope(headers=headers)).run()
    assert (answer.status, len(answer.messages)) == (400, 2)


@pytest.mark.parametrize("http_version", ["2", "3"])
async def test_a_stream_of_http2_is_refused_at_once(http_version: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "alice", Policy(required=True))

    scope = http_scope(headers=[("content-length", "20")]) | {"http_version": http_version}
    answer = await RequestDriver(LateClaim(app, store=MemoryStore()), scope).run()
    assert (answer.status, answer.complete) == (400, True)


async def test_draining_a_refused_body_is_bounded_in_bytes() -> None:
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        taken += 1_000
        return {"type": "http.request", "body": b"x" * 1_000, "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    app = guard(Charges(), MemoryStore(), max_request_bytes=5_000, max_discard_bytes=20_000)
    await app(http_scope(headers=key_header("k")), receive, send)
    assert sent[0]["status"] == 413
    assert sent[-1].get("more_body", False) is False
    assert 20_000 <= taken - 6_000 <= 21_000


async def test_draining_a_refused_body_is_bounded_in_seconds() -> None:
    driver = RequestDriver(
        guard(Charges(), MemoryStore(), body_timeout=0.05), http_scope(headers=key_header("k"))
    )
    driver.send_body(b"x" * (MIB + 1), more_body=True)  # and nothing more
    answer = await driver.run()
    assert (answer.status, answer.complete) == (413, True)


async def test_a_client_that_waits_to_be_invited_is_told_at_once() -> None:
    """Reading would have the server send 100 (Continue), and the client all of its body."""
    headers = [*key_header("k"), ("expect", "100-continue"), ("content-length", str(12 * MIB))]
    driver = RequestDriver(guard(Charges(), MemoryStore()), http_scope(headers=headers))
    answer = await driver.run()
    assert (answer.status, len(answer.messages)) == (413, 2)


# Trailers are no headers (RFC 9110, 6.5.1).


async def test_trailers_that_a_server_appends_while_the_body_is_read_are_taken_out() -> None:
    charges = Charges()
    seen: list[Any] = []

    def fingerprint(view: Any) -> bytes:
        seen.extend(name for name, _ in view.headers)
        return b"same"

    app = guard(charges, MemoryStore(), fingerprint=fingerprint)
    driver = RequestDriver(app, http_scope(headers=[*key_header("k"), ("transfer-encoding", "chunked")]))

    async def receive() -> Any:
        driver.scope["headers"] += [(b"authorization", b"Bearer mallory"), (b"prefer", b"wait=30")]
        return {"type": "http.request", "body": b"{}", "more_body": False}

    await app(driver.scope, receive, driver._send)
    assert charges.runs == 1
    names = [name for name, _ in charges.scopes[0]["headers"]]
    assert names == seen == [b"idempotency-key", b"transfer-encoding"]
    driver._to_app.close()
    driver._from_client.close()


async def test_an_announced_trailer_is_no_header_even_if_it_came_with_the_head() -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_header("X-User"))
    framing = [("transfer-encoding", "chunked"), ("trailer", "Other, X-User")]
    refused = await call(app, key="k", headers=[*framing, ("x-user", "alice")])
    assert refused.status == 400
    assert b"missing-tenant" in refused.body
    key = await call(app, key="k", headers=[("x-user", "alice"), ("trailer", "idempotency-key")])
    assert key.status == 400
    assert b"invalid-key" in key.body
    own = await call(app, key="k", headers=[("x-user", "alice"), ("trailer", "Digest"), ("digest", "x")])
    assert own.status == 201
    assert [name for name, _ in charges.scopes[0]["headers"] if name == b"digest"] == []
    assert charges.runs == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", SERVERS)
async def test_a_credential_in_a_late_trailer_names_nobody(server: str) -> None:
    """uvicorn with httptools appends trailers to the headers; later than the head, it can be told."""
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_header("X-User"))
    head = request("/charges", "k", b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    head = head.replace(b"\r\n\r\n", b"\r\nx-user: alice\r\n\r\n")
    requests = RequestCounter(app)
    async with serve(requests, server) as port, await Wire.connect(port) as wire:
        await wire.send(head)
        await until(lambda: requests.started == 1)
        await wire.send(b"2\r\n{}\r\n0\r\nx-user: mallory\r\nx-late: 1\r\n\r\n")
        assert (await wire.response()).status == 201
    names = [(name, value) for name, value in charges.scopes[0]["headers"] if name.startswith(b"x-")]
    assert names == [(b"x-user", b"alice")]


# Field values are compared without the blanks round them (RFC 9110, 5.5).


@pytest.mark.parametrize("name", ["idempotency-key", "x-user", "content-type", "content-encoding"])
async def test_blanks_round_a_field_value_make_no_other_request(name: str) -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_header("X-User"))
    fields = {
        "idempotency-key": "k",
        "x-user": "alice",
        "content-type": "text/plain",
        "content-encoding": "br",
    }
    first = await call(app, headers=fields.items())
    again = await call(app, headers=(fields | {name: f" \t{fields[name]} \t"}).items())
    assert (first.status, again.status, again.replayed) == (201, 201, True)
    assert charges.runs == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", SERVERS)
async def test_blanks_behind_a_field_value_make_no_other_tenant(server: str) -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_header("X-User"))
    async with serve(app, server) as port:
        for value in ("alice", "alice  ", "alice\t"):
            answer = await post(port, key="k", headers=[("x-user", value)])
            assert (answer.status, answer.replayed) == (201, value != "alice")
    assert charges.runs == 1


async def test_a_length_with_blanks_is_a_length() -> None:
    driver = RequestDriver(
        guard(Charges(), MemoryStore()),
        http_scope(
            headers=[*key_header("k"), ("content-length", f"{12 * MIB} "), ("expect", "100-continue")]
        ),
    )
    assert (await driver.run()).status == 413


# Bodies that a server lost.


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "2"), ("upgrade", "h2c"), ("connection", "upgrade")],
        [("transfer-encoding", "chunked"), ("upgrade", "h2c"), ("connection", "upgrade")],
        [("content-length", "2")],
    ],
)
async def test_an_announced_body_that_is_not_there_is_refused(headers: list[tuple[str, str]]) -> None:
    charges, store = Charges(), MemoryStore()
    answer = await call(guard(charges, store), key="k", headers=headers, body=b"")
    assert answer.status == 400
    assert b"urn:problem:idempotency:body-lost" in answer.body
    assert charges.runs == 0
    assert not (await store.scan()).records


@pytest.mark.parametrize("headers", [[], [("content-length", "0")], [("transfer-encoding", "chunked")]])
async def test_an_empty_body_is_a_body(headers: list[tuple[str, str]]) -> None:
    assert (await call(guard(Charges(), MemoryStore()), key="k", headers=headers, body=b"")).status == 201


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_request_that_asks_for_another_protocol_keeps_its_body_or_is_refused(
    server: str, framing: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    charges = Charges()
    head = request("/charges", "k", b"").replace(
        b"content-length: 0",
        (b"content-length: 2" if framing == "length" else b"transfer-encoding: chunked")
        + b"\r\nupgrade: h2c\r\nconnection: upgrade\r\nhttp2-settings: AAMAAABkAAQAAP__",
    )
    body = b"{}" if framing == "length" else b"2\r\n{}\r\n0\r\n\r\n"
    async with serve(guard(charges, MemoryStore()), server) as port, await Wire.connect(port) as wire:
        await wire.send(head + body)
        async with asyncio.timeout(30):
            status, _ = await wire.head()
    if status == 201:
        assert charges.bodies == [b"{}"]
    else:
        assert charges.bodies == []
        assert status in {101, 400}


def test_a_policy_names_its_bounds() -> None:
    with pytest.raises(ValueError, match="max_discard_bytes must be >= 0"):
        Policy(max_discard_bytes=-1)
