"""Endless, oversized and malformed requests are refused with bounded memory, after the answers to earlier requests."""

from __future__ import annotations

from typing import Any

import pytest
from raw_http import Client, chunk, head

MEGABYTE = 1 << 20

TOO_LARGE = {
    "many short headers": head("GET", "/health", *("a: b" for _ in range(200))),
    "many empty headers": head("GET", "/health", *("a:" for _ in range(200))),
    "one long header": head("GET", "/health", "a: " + "v" * 40_000),
    "a long name": head("GET", "/health", "n" * 40_000 + ": v"),
    "a long target": head("GET", "/" + "a" * 40_000),
    "a long query": head("GET", "/health?" + "a" * 40_000),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_headers_over_the_limit_are_431_and_close_the_connection(client: Client, kind: str) -> None:
    answer = client.send(TOO_LARGE[kind]).answer()
    assert (answer.status, answer.problem) == (431, "headers-too-large")
    assert answer.header("connection") == "close"
    assert answer.header("cache-control") == "no-store"
    assert answer.header("x-content-type-options") == "nosniff"
    client.closes()


def test_a_hundred_headers_of_thirty_kilobytes_are_accepted(client: Client) -> None:
    lines = [f"x-{number}: {'v' * 280}" for number in range(99)]
    assert client.send(head("GET", "/health", *lines)).answer().status == 200


ENDLESS = {
    "headers": (b"GET /health HTTP/1.1\r\nHost: service\r\n", b"a: b\r\n" * 700),
    "a header's value": (b"GET /health HTTP/1.1\r\na: ", b"v" * 4096),
    "blanks before a header's value": (b"GET /health HTTP/1.1\r\na:", b" " * 4096),
    "a header's name": (b"GET /health HTTP/1.1\r\n", b"n" * 4096),
    "a target": (b"GET /", b"a" * 4096),
    "a method": (b"", b"G" * 4096),
    "blank lines before a request": (b"", b"\r\n" * 2048),
    "line feeds before a request": (b"", b"\n" * 4096),
    "nulls": (b"", b"\0" * 4096),
    "interim answers before a request": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 160),
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01", b"\x00" * 4096),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_request_head_is_cut_off_and_not_buffered(client: Client, wire: Any, kind: str) -> None:
    first, more = ENDLESS[kind]
    before = wire.resident()
    client.send(first)
    assert client.send_until_closed(more, at_most=64 * MEGABYTE) < 64 * MEGABYTE
    assert wire.resident() - before < 16 * MEGABYTE


MALFORMED = {
    "not HTTP": b"hello\r\n\r\n",
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a body whose size is no number": head("POST", "/health", "Content-Length: many"),
    "a negative size": head("POST", "/health", "Content-Length: -1"),
    "a size with a sign": head("POST", "/health", "Content-Length: +1") + b"a",
    "two sizes": head("POST", "/health", "Content-Length: 1", "Content-Length: 2") + b"ab",
    "a size and chunks": head("POST", "/health", "Content-Length: 1", "Transfer-Encoding: chunked")
    + b"0\r\n\r\n",
    "a folded header": head("GET", "/health", "a: b\r\n c"),
    "a blank before the colon": head("GET", "/health", "a : b"),
    "a header without a colon": head("GET", "/health", "a"),
    "a chunk size that is no number": head("POST", "/health", "Transfer-Encoding: chunked") + b"x\r\n",
    "another coding than chunked": head("POST", "/health", "Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n",
    "a target with a blank": head("GET", "/hea lth"),
    "a target that is no path": head("GET", "health"),
    "a tunnel": head("CONNECT", "service:443"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_bytes_that_are_not_http_get_400_and_a_closed_connection(client: Client, kind: str) -> None:
    answer = client.send(MALFORMED[kind]).answer()
    assert answer.status == 400
    assert answer.header("connection") == "close"
    client.closes()


@pytest.mark.parametrize("version", ["2.0", "0.9", "1.2"])
def test_other_http_versions_are_refused(client: Client, version: str) -> None:
    answer = client.send(head("GET", "/health", version=version)).answer()
    assert answer.status in {400, 505}
    client.closes()


def test_an_http_1_0_request_is_answered_and_its_connection_closed(client: Client) -> None:
    assert client.send(head("GET", "/health", version="1.0", host=None)).answer().status == 200
    client.closes()


def test_a_blank_line_before_a_request_is_ignored(client: Client) -> None:
    for _ in range(2):
        assert client.send(b"\r\n" + head("GET", "/health")).answer().status == 200


def test_a_refusal_is_sent_after_the_answers_to_earlier_requests(
    client: Client, wire: Any, own_key: str
) -> None:
    client.send(wire.predict(f"Idempotency-Key: {own_key}") + head("GET", "/health") + b"nonsense\r\n\r\n")
    assert [client.answer().status for _ in range(3)] == [200, 200, 400]
    client.closes()
    again = wire.ask(wire.predict(f"Idempotency-Key: {own_key}"))
    assert again.header("idempotency-replayed") == "true"  # it was decided and recorded


def test_a_malformed_chunked_body_is_400_and_not_decided(client: Client, wire: Any, own_key: str) -> None:
    post = wire.post("Transfer-Encoding: chunked", f"Idempotency-Key: {own_key}")
    client.send(post, chunk(wire.body[:100]), b"nonsense\r\n")
    assert client.answer().status == 400
    client.closes()
    assert wire.ask(wire.predict(f"Idempotency-Key: {own_key}")).header("idempotency-replayed") is None


def test_a_malformed_body_does_not_affect_the_request_before_it(client: Client, wire: Any) -> None:
    bad = wire.post("Transfer-Encoding: chunked") + b"nonsense\r\n"
    client.send(wire.predict() + bad)
    assert [client.answer().status for _ in range(2)] == [200, 400]
    client.closes()


def test_refusals_are_counted_by_reason(wire: Any) -> None:
    name = 'ml_service_http_refusals_total{reason="malformed"}'
    before = wire.metric(name)
    assert wire.ask(b"nonsense\r\n\r\n").status == 400
    assert wire.metric(name) == before + 1


def test_refusals_write_almost_nothing_to_the_log(wire: Any) -> None:
    before = wire.log_file.stat().st_size
    for _ in range(100):
        wire.ask(b"nonsense\r\n\r\n")
    assert wire.log_file.stat().st_size - before < 2_000
