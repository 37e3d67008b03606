"""
Trailers and chunk framing: limited in size, and trailers are never read as headers.

RFC 9110, 6.5.1: a recipient must not merge a trailer into the headers unless the field allows it. No field that this
service reads does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from raw_http import Client, chunk, head

MEGABYTE = 1 << 20

CHUNKED = "Transfer-Encoding: chunked"


def together(*parts: bytes) -> list[bytes]:
    return [b"".join(parts)]


def separately(*parts: bytes) -> list[bytes]:
    return list(parts)


@pytest.fixture(params=[together, separately], ids=["in one segment", "in segments of their own"])
def sent(request: pytest.FixtureRequest) -> Callable[..., list[bytes]]:
    """Sends the parts of a request in one call or in several."""
    chosen: Callable[..., list[bytes]] = request.param
    return chosen


def test_trailers_are_ignored(client: Client, wire: Any, sent: Callable[..., list[bytes]]) -> None:
    parts = sent(wire.post(CHUNKED), chunk(wire.body), b"0\r\n", b"x-checksum: 1\r\n\r\n")
    assert client.send(*parts).answer().status == 200
    assert client.send(head("GET", "/health")).answer().status == 200


def test_an_api_key_in_a_trailer_is_401(client: Client, wire: Any, sent: Callable[..., list[bytes]]) -> None:
    trailer = f"X-API-Key: {wire.api_key}\r\n\r\n".encode()
    parts = sent(wire.post(CHUNKED, key=None), chunk(wire.body), b"0\r\n", trailer)
    assert client.send(*parts).answer().status == 401


def test_an_idempotency_key_in_a_trailer_is_ignored(
    client: Client, wire: Any, sent: Callable[..., list[bytes]]
) -> None:
    parts = sent(wire.post(CHUNKED), chunk(wire.body), b"0\r\n", b"Idempotency-Key: in-a-trailer\r\n\r\n")
    answers = [client.send(*parts).answer() for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body != answers[1].body  # each was decided, with its own request id
    assert answers[1].header("idempotency-replayed") is None


def test_trailers_do_not_override_headers(client: Client, wire: Any, own_key: str) -> None:
    trailers = "X-API-Key: wrong\r\nIdempotency-Key: other\r\nContent-Type: text/plain\r\nHost: other\r\n\r\n"
    parts = (
        wire.post(CHUNKED, f"Idempotency-Key: {own_key}"),
        chunk(wire.body),
        b"0\r\n" + trailers.encode(),
    )
    first, second = (client.send(*parts).answer() for _ in range(2))
    assert (first.status, second.status) == (200, 200)
    assert second.body == first.body
    assert second.header("idempotency-replayed") == "true"


def test_a_host_in_a_trailer_does_not_replace_the_header(client: Client, wire: Any) -> None:
    lines = (f"X-API-Key: {wire.api_key}", "Content-Type: application/json", CHUNKED)
    parts = (head("POST", "/predict", *lines, host=None), chunk(wire.body), b"0\r\nHost: service\r\n\r\n")
    assert client.send(*parts).answer().status == 400


def test_a_content_type_in_a_trailer_does_not_replace_the_header(client: Client, wire: Any) -> None:
    lines = (f"X-API-Key: {wire.api_key}", "Content-Type: text/plain", CHUNKED)
    trailer = b"0\r\nContent-Type: application/json\r\n\r\n"
    parts = (head("POST", "/predict", *lines), chunk(wire.body), trailer)
    assert client.send(*parts).answer().status == 415


@pytest.mark.parametrize("field", ["X-Request-ID: from-a-trailer", "Origin: http://a.trailer"])
def test_a_request_id_and_an_origin_in_a_trailer_are_ignored(client: Client, field: str) -> None:
    request = head("GET", "/health", CHUNKED) + f"0\r\n{field}\r\n\r\n".encode()
    answer = client.send(request).answer()
    assert answer.header("x-request-id") != "from-a-trailer"
    assert answer.header("access-control-allow-origin") is None


ENDLESS = {
    "short trailers": (b"0\r\n", b"a:\r\n" * 1000),
    "trailers with values": (b"0\r\n", b"a: " + b"v" * 500 + b"\r\n"),
    "a trailer whose name never ends": (b"0\r\n", b"n" * 4096),
    "a trailer whose value never ends": (b"0\r\na: ", b"v" * 4096),
    "a chunk extension": (b"1;", b"e=v;" * 1000),
    "a chunk extension with a quoted value": (b'1;e="', b"v" * 4096),
    "leading zeros of a chunk's size": (b"0", b"0" * 4096),
    "an extension of the last chunk": (b"0;", b"e=v;" * 1000),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("to", ["a path that needs no key", "a path that needs one", "a body that is read"])
def test_endless_framing_around_a_body_is_cut_off_and_not_buffered(
    client: Client, wire: Any, kind: str, to: str
) -> None:
    request = {
        "a path that needs no key": head("GET", "/health", CHUNKED),
        "a path that needs one": wire.post(CHUNKED, key=None),
        "a body that is read": wire.post(CHUNKED),
    }[to]
    first, more = ENDLESS[kind]
    before = wire.resident()
    client.send(request, first)
    sent = client.send_until_closed(more, at_most=64 * MEGABYTE)
    assert sent < 64 * MEGABYTE
    assert wire.resident() - before < 16 * MEGABYTE


def test_trailers_over_the_limit_are_431_and_close_the_connection(client: Client, wire: Any) -> None:
    client.send(wire.post(CHUNKED), chunk(wire.body), b"0\r\n")
    client.send(b"a: " + b"v" * 1_000_000 + b"\r\n")
    answer = client.answer()
    assert (answer.status, answer.problem) == (431, "headers-too-large")
    assert answer.header("connection") == "close"
    client.closes()


def test_a_body_in_one_byte_chunks_is_cut_off(client: Client, wire: Any) -> None:
    client.send(wire.post(CHUNKED), b"1\r\n[\r\n" * 4_000)
    sent = client.send_until_closed(b"1\r\n[\r\n" * 4_000, at_most=64 * MEGABYTE)
    assert sent < 64 * MEGABYTE


@pytest.mark.parametrize("size", [7, 100, 4096])
def test_a_body_in_small_chunks_is_read(client: Client, wire: Any, size: int) -> None:
    chunks = b"".join(chunk(wire.body[at : at + size]) for at in range(0, len(wire.body), size))
    assert client.send(wire.post(CHUNKED), chunks + b"0\r\n\r\n").answer().status == 200


def test_chunk_extensions_and_leading_zeros_within_the_limit_are_ignored(client: Client, wire: Any) -> None:
    framed = b'000%x;name="va;lue";other\r\n%b\r\n000\r\n\r\n' % (len(wire.body), wire.body)
    assert client.send(wire.post(CHUNKED), framed).answer().status == 200


def test_trailers_of_many_connections_take_little_memory(
    start_wire: Callable[..., AbstractContextManager[Any]],
) -> None:
    with start_wire() as wire:
        before = wire.resident()
        clients = [wire.connect() for _ in range(50)]
        for one in clients:
            one.send(wire.post(CHUNKED), chunk(wire.body), b"0\r\n" + b"a:\r\n" * 7_000)
        assert wire.healthy()
        assert wire.resident() - before < 32 * MEGABYTE
        for one in clients:
            one.close()


def test_trailers_over_the_limit_are_counted(wire: Any) -> None:
    name = 'ml_service_http_refusals_total{reason="framing-too-large"}'
    before = wire.metric(name)
    with wire.connect() as client:
        client.send(wire.post(CHUNKED), chunk(wire.body), b"0\r\n").send(b"a: " + b"v" * 1_000_000)
        assert client.answer().status == 431
    assert wire.metric(name) == before + 1


def test_a_request_after_trailers_is_answered(client: Client, wire: Any) -> None:
    first = wire.post(CHUNKED) + chunk(wire.body) + b"0\r\nx-a: 1\r\n\r\n"
    answers = client.send(first + head("GET", "/health"))
    assert answers.answer().status == 200
    assert json.loads(answers.answer().body)["status"] == "healthy"
