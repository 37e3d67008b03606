"""
Slow clients: one timer limits the wait for a request, another the wait for a client to read its answer.

Both are one second here; a failing test waits much longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from patience import until_sync
from raw_http import Client, head

pytestmark = pytest.mark.real_time("the timers of a service in another process")

Start = Callable[..., AbstractContextManager[Any]]

SECOND = {
    f"ML_SERVICE_{name}": "1"
    for name in ("HEADER_TIMEOUT", "BODY_TIMEOUT", "KEEP_ALIVE_TIMEOUT", "WRITE_TIMEOUT")
}
SOON = 30.0  # s: the limits of the service are 1 s, the rest is for a busy machine
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def wire(start_wire: Start) -> Iterator[Any]:
    """A service with short limits."""
    with start_wire(**SECOND) as running:
        yield running


def asset(wire: Any) -> bytes:
    """A request for the largest answer without a key, more than a megabyte."""
    return head("GET", "/docs/swagger-ui-bundle.js")


@pytest.mark.parametrize(
    "said", [b"", b"\r\n", b"\r\n\r\n\r\n", b"\n"], ids=["nothing", "a line", "lines", "a feed"]
)
def test_a_connection_without_a_request_is_closed_without_an_answer(client: Client, said: bytes) -> None:
    client.send(said)
    assert client.closes(SOON) == b""


def test_blank_lines_do_not_restart_the_timer(client: Client) -> None:
    client.socket.settimeout(0.1)
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        try:
            client.send(b"\r\n")
            client._more()
        except TimeoutError:
            continue  # no answer for a tenth of a second: send another blank line
        except OSError:
            return
    pytest.fail("the connection is still open")


@pytest.mark.parametrize("part", [b"G", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: service\r\n"])
def test_headers_that_stop_are_408(client: Client, part: bytes) -> None:
    answer = client.send(part).answer()
    assert (answer.status, answer.problem) == (408, "request-timeout")
    client.closes(SOON)


def test_headers_sent_byte_by_byte_are_408(client: Client) -> None:
    client.socket.settimeout(0.1)
    for byte in head("GET", "/health", "a: " + "v" * 1000):
        try:
            client.send(bytes([byte]))
            client._more()
        except TimeoutError:
            continue
        except OSError:
            break
        else:
            break
    client.socket.settimeout(SOON)
    assert client.answer().status == 408


UNFINISHED = {
    "a body that was announced": ("Content-Length: 100", b""),
    "a body that began": ("Content-Length: 100", b"x"),
    "chunks that did not begin": (CHUNKED, b""),
    "a chunk that began": (CHUNKED, b"5\r\nab"),
    "chunks that did not end": (CHUNKED, b"2\r\nab\r\n"),
    "trailers that did not begin": (CHUNKED, b"0\r\n"),
    "trailers that did not end": (CHUNKED, b"0\r\na: b\r\n"),
}


@pytest.mark.parametrize("kind", UNFINISHED)
@pytest.mark.parametrize("to", ["/health", "/docs", "/predict", "/no-such-path"])
def test_an_answer_to_an_incomplete_request_closes_the_connection(client: Client, kind: str, to: str) -> None:
    declared, part = UNFINISHED[kind]
    answer = client.send(head("GET", to, declared), part).answer()
    assert answer.status in {200, 401, 404}
    assert answer.header("connection") == "close"
    client.closes(SOON)


@pytest.mark.parametrize("kind", UNFINISHED)
def test_an_incomplete_body_is_408(client: Client, wire: Any, kind: str) -> None:
    declared, part = UNFINISHED[kind]
    assert client.send(wire.post(declared), part).answer().status == 408
    client.closes(SOON)


def test_a_client_that_does_not_read_a_large_answer_is_disconnected(wire: Any) -> None:
    name = 'ml_service_http_refusals_total{reason="answer-not-read"}'
    before = wire.metric(name)
    with wire.connect(receive_buffer=4096) as client:
        client.send(asset(wire))
        until_sync(lambda: wire.metric(name) != before, name, patience=SOON)


@pytest.mark.parametrize("times", [8, 40])
def test_a_client_that_sends_many_requests_and_reads_nothing_is_disconnected(wire: Any, times: int) -> None:
    before = wire.metric("ml_service_open_connections")
    with wire.connect(receive_buffer=4096) as client:
        client.send_until_closed(asset(wire), at_most=times * len(asset(wire)))
        until_sync(lambda: wire.metric("ml_service_open_connections") <= before, patience=SOON)


def test_a_client_that_reads_slowly_gets_the_whole_answer(start_wire: Start) -> None:
    with (
        start_wire(ML_SERVICE_WRITE_TIMEOUT="10", ML_SERVICE_KEEP_ALIVE_TIMEOUT="0.2") as wire,
        wire.connect(receive_buffer=65_536) as client,
    ):
        whole = wire.ask(asset(wire)).body
        client.send(asset(wire))
        received = bytearray()
        while whole not in received:
            received += client.socket.recv(65_536)
            time.sleep(0.01)  # slower than the keep-alive timer, faster than the write timer
        assert received.endswith(whole)


def test_health_answers_while_many_clients_are_slow(wire: Any) -> None:
    clients = [wire.connect() for _ in range(100)]
    for number, client in enumerate(clients):
        client.send([b"GET /", wire.post(CHUNKED) + b"5\r\n", asset(wire)][number % 3])
    begun = time.monotonic()
    assert wire.healthy()
    assert time.monotonic() - begun < SOON
    for client in clients:
        client.close()
