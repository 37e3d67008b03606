"""
Clients that take their time: a timer runs whenever no request does, and another whenever an answer is not read.

The service under test gives one second for each; a test that fails waits much longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from raw_http import Client, chunk, head

pytestmark = pytest.mark.real_time("the timers of a service in another process")

SOON = 30.0  # s: the service's limits are 1 s, the rest is for a busy machine
CHUNKED = "Transfer-Encoding: chunked"


def asset(wire: Any) -> bytes:
    """A request for the largest answer that needs no key: more than a megabyte."""
    return head("GET", "/docs/swagger-ui-bundle.js")


@pytest.mark.parametrize(
    "said", [b"", b"\r\n", b"\r\n\r\n\r\n", b"\n"], ids=["nothing", "a line", "lines", "a feed"]
)
def test_a_connection_on_which_no_request_begins_is_closed(client: Client, said: bytes) -> None:
    client.send(said)
    assert client.closes(SOON) == b""


def test_blank_lines_do_not_wind_the_timer_up_again(client: Client) -> None:
    client.socket.settimeout(0.1)
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        try:
            client.send(b"\r\n")
            client._more()
        except TimeoutError:
            continue  # a tenth of a second without an answer; a blank line more
        except OSError:
            return
    pytest.fail("the connection is still open")


@pytest.mark.parametrize("part", [b"G", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: service\r\n"])
def test_headers_that_stop_are_408(client: Client, part: bytes) -> None:
    answer = client.send(part).answer()
    assert (answer.status, answer.problem) == (408, "request-timeout")
    client.closes(SOON)


def test_headers_of_one_byte_at_a_time_are_408(client: Client) -> None:
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
def test_after_an_answer_to_a_request_that_is_not_whole_the_connection_is_closed(
    client: Client, kind: str, to: str
) -> None:
    declared, part = UNFINISHED[kind]
    answer = client.send(head("GET", to, declared), part).answer()
    assert answer.status in {200, 401, 404}
    assert answer.header("connection") == "close"
    client.closes(SOON)


@pytest.mark.parametrize("kind", UNFINISHED)
def test_a_body_that_stops_while_it_is_read_is_408(client: Client, wire: Any, kind: str) -> None:
    declared, part = UNFINISHED[kind]
    assert client.send(wire.post(declared), part).answer().status == 408
    client.closes(SOON)


@pytest.mark.parametrize("declared", ["Content-Length: 1000000000000", CHUNKED])
@pytest.mark.parametrize("key", [None, "wrong"])
def test_after_a_refusal_the_body_is_not_swallowed(
    client: Client, wire: Any, declared: str, key: str | None
) -> None:
    part = chunk(b"x" * 65_536) if declared == CHUNKED else b"x" * 65_536
    client.send(wire.post(declared, key=key))
    sent = client.send_until_closed(part, at_most=1 << 30)
    assert sent < 64 << 20


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_a_client_that_sends_all_of_its_body_before_it_reads_still_reads_its_refusal(
    client: Client, wire: Any, size: int
) -> None:
    client.send(wire.post(f"Content-Length: {size}", key=None), b"x" * size)
    answer = client.answer()
    assert answer.status == 401


def test_a_request_that_was_whole_when_it_was_refused_keeps_its_connection(client: Client, wire: Any) -> None:
    for _ in range(2):
        request = wire.post(f"Content-Length: {len(wire.body)}", key="wrong")
        assert client.send(request + wire.body).answer().status == 401
    assert client.send(wire.predict()).answer().status == 200


def test_a_client_that_does_not_read_a_large_answer_is_cut_off(wire: Any) -> None:
    name = 'ml_service_http_refusals_total{reason="answer-not-read"}'
    before = wire.metric(name)
    with wire.connect(receive_buffer=4096) as client:
        client.send(asset(wire))
        deadline = time.monotonic() + SOON
        while wire.metric(name) == before:
            assert time.monotonic() < deadline
            time.sleep(0.1)  # another process's timer: nothing to wait for here


@pytest.mark.parametrize("times", [8, 40])
def test_a_client_that_asks_again_and_again_and_reads_nothing_is_cut_off(wire: Any, times: int) -> None:
    before = wire.metric("ml_service_open_connections")
    with wire.connect(receive_buffer=4096) as client:
        client.send_until_closed(asset(wire), at_most=times * len(asset(wire)))
        deadline = time.monotonic() + SOON
        while wire.metric("ml_service_open_connections") > before:
            assert time.monotonic() < deadline
            time.sleep(0.1)  # as above


def test_a_client_that_reads_slowly_gets_the_whole_answer(
    start_wire: Callable[..., AbstractContextManager[Any]],
) -> None:
    with (
        start_wire(ML_SERVICE_WRITE_TIMEOUT="10", ML_SERVICE_KEEP_ALIVE_TIMEOUT="0.2") as wire,
        wire.connect(receive_buffer=65_536) as client,
    ):
        whole = wire.ask(asset(wire)).body
        client.send(asset(wire))
        received = bytearray()
        while whole not in received:
            received += client.socket.recv(65_536)
            time.sleep(0.01)  # slower than the keep-alive timer, quicker than the write timer
        assert received.endswith(whole)


def test_requests_may_be_pipelined_up_to_a_limit_and_are_answered_in_order(client: Client) -> None:
    client.send(b"".join(head("GET", "/health", f"X-Request-ID: {number}") for number in range(16)))
    assert [client.answer().header("x-request-id") for _ in range(16)] == [
        str(number) for number in range(16)
    ]
    assert client.send(head("GET", "/health")).answer().status == 200


def test_more_pipelined_requests_than_that_are_refused_behind_their_answers(
    client: Client, wire: Any
) -> None:
    client.send(head("GET", "/health") * 5_000)
    statuses = []
    while (answer := client.answer()).status == 200:
        statuses.append(answer.status)
    assert (answer.status, answer.problem) == (503, "too-many-pipelined")
    assert 16 <= len(statuses) < 5_000
    client.closes(SOON)


def test_pipelined_requests_of_many_connections_take_no_memory(wire: Any) -> None:
    before = wire.resident()
    clients = [wire.connect() for _ in range(20)]
    for client in clients:
        client.send_until_closed(head("GET", "/health") * 1_000, at_most=1_000_000)
    assert wire.healthy()
    assert wire.resident() - before < 32 << 20
    for client in clients:
        client.close()


def test_health_is_quick_while_many_clients_dawdle(wire: Any) -> None:
    clients = [wire.connect() for _ in range(100)]
    for number, client in enumerate(clients):
        client.send([b"GET /", wire.post(CHUNKED) + b"5\r\n", asset(wire)][number % 3])
    begun = time.monotonic()
    assert wire.healthy()
    assert time.monotonic() - begun < SOON
    for client in clients:
        client.close()
