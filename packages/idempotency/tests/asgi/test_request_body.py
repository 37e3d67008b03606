"""Refused uploads, trailers, white space in header values, and bodies that a server lost."""

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
    """What a client reads after it has written its whole request; raises on a connection reset."""
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


# granian closes a connection as soon as the response is complete, even while the application reads the body: the client
# may see a broken pipe (docs/concepts.md says so).
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", [server for server in SERVERS if server != "granian"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("refusal", ["too large", "bad key", "no tenant"])
@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
async def test_client_that_sends_its_whole_upload_first_reads_the_refusal(
    server: str, framing: str, refusal: str, late: bool
) -> None:
    charges, size = Charges(), 12 * MIB
    app = IdempotencyMiddleware(
        charges,
        store=MemoryStore(),
        tenant=by_header("X-User") if refusal == "no tenant" else lambda scope: "",
    )
    if late:
        app = LateClaim(_claim_before_body(charges, by_header("X-User"), refusal), store=MemoryStore())
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


def _claim_before_body(charges: Charges, tenant: Any, refusal: str) -> Any:
    """*charges* behind a late claim that is made before the body is read."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, (lambda: tenant(scope)) if refusal == "no tenant" else "alice")
        await charges(scope, receive, send)

    return app


async def test_late_claim_drains_the_body_after_refusing_a_missing_key() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "alice", Policy(required=True))

    parts = [{"type": "http.request", "body": b"x" * 10, "more_body": more} for more in (False, True)]
    sent: list[Any] = []

    async def receive() -> Any:
        assert sent, "the response is sent first: the client may wait for it"
        return parts.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    await LateClaim(app, store=MemoryStore())(http_scope(headers=[("content-length", "20")]), receive, send)
    assert (sent[0]["status"], sent[-1].get("more_body", False), parts) == (400, False, [])


@pytest.mark.parametrize(
    "headers", [[], [("content-length", "0")], [("expect", "100-continue"), ("content-length", "9")]]
)
async def test_late_claim_drains_nothing_if_no_body_will_come(
    headers: list[tuple[str, str]],
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await claim(scope, "alice", Policy(required=True))

    answer = await RequestDriver(LateClaim(app, store=MemoryStore()), http_scope(headers=headers)).run()
    assert (answer.status, len(answer.messages)) == (400, 2)


@pytest.mark.parametrize("http_version", ["2", "3"])
async def test_refusal_over_http_2_and_3_does_not_drain_the_body(http_version: str) -> None:
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
    driver.send_body(b"x" * (MIB + 1), more_body=True)  # no further part arrives
    answer = await driver.run()
    assert (answer.status, answer.complete) == (413, True)


async def test_oversized_body_with_expect_continue_is_refused_without_reading_it() -> None:
    charges = Charges()
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the server would send 100 (Continue), and the client its whole body")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [*key_header("k"), ("expect", "100-continue"), ("content-length", str(12 * MIB))]
    await guard(charges, MemoryStore())(http_scope(headers=headers), receive, send)
    assert (sent[0]["status"], len(sent), charges.runs) == (413, 2, 0)


# Trailers are not headers (RFC 9110, 6.5.1).


async def test_trailers_that_the_server_appends_to_the_headers_are_removed() -> None:
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


async def test_field_listed_in_the_trailer_header_is_ignored_as_a_header() -> None:
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
async def test_tenant_header_in_a_late_trailer_is_ignored(server: str) -> None:
    """uvicorn with httptools appends trailers to the headers: those that arrive after the head are told apart."""
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


# Field values are compared without surrounding white space (RFC 9110, 5.5).


@pytest.mark.parametrize("name", ["idempotency-key", "x-user", "content-type", "content-encoding"])
async def test_whitespace_around_header_values_makes_no_other_request(name: str) -> None:
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
async def test_trailing_whitespace_in_a_tenant_header_makes_no_other_tenant(server: str) -> None:
    charges = Charges()
    app = IdempotencyMiddleware(charges, store=MemoryStore(), tenant=by_header("X-User"))
    async with serve(app, server) as port:
        for value in ("alice", "alice  ", "alice\t"):
            answer = await post(port, key="k", headers=[("x-user", value)])
            assert (answer.status, answer.replayed) == (201, value != "alice")
    assert charges.runs == 1


async def test_content_length_with_trailing_whitespace_is_read() -> None:
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
async def test_declared_body_that_the_server_lost_is_refused(headers: list[tuple[str, str]]) -> None:
    charges, store = Charges(), MemoryStore()
    answer = await call(guard(charges, store), key="k", headers=headers, body=b"")
    assert answer.status == 400
    assert b"urn:problem:idempotency:body-lost" in answer.body
    assert charges.runs == 0
    assert not (await store.scan()).records


@pytest.mark.parametrize("headers", [[], [("content-length", "0")], [("transfer-encoding", "chunked")]])
async def test_empty_body_is_accepted(headers: list[tuple[str, str]]) -> None:
    assert (await call(guard(Charges(), MemoryStore()), key="k", headers=headers, body=b"")).status == 201


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_upgrade_request_keeps_its_body_or_is_refused(
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


def test_policy_refuses_negative_max_discard_bytes() -> None:
    with pytest.raises(ValueError, match="max_discard_bytes must be >= 0"):
        Policy(max_discard_bytes=-1)
