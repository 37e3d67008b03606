"""The limit on open connections: idle connections are closed for new ones, running requests are not."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from patience import until_sync
from raw_http import head

pytestmark = pytest.mark.real_time("a service in another process closes connections by itself")

Start = Callable[..., AbstractContextManager[Any]]

BRIEF_STOP = {"ML_SERVICE_SHUTDOWN_TIMEOUT": "2"}
"""A short shutdown, because held connections stay open until then: the other timers are longer than a test."""

HOLDS = {
    "silent": b"\r\n",
    "half a request": b"GET /health HTTP/1.1\r\n",
    "answered": head("GET", "/health"),
    "unread large answer": head("GET", "/docs/swagger-ui-bundle.js") * 3,
    "refused and still sending": head("POST", "/predict", "Content-Length: 100"),
}


@pytest.mark.parametrize("kind", HOLDS)
def test_health_answers_while_a_client_holds_too_many_connections(start_wire: Start, kind: str) -> None:
    with start_wire(**BRIEF_STOP, ML_SERVICE_MAX_CONNECTIONS="20") as wire:
        held = [wire.connect(receive_buffer=4096) for _ in range(60)]
        for client in held:
            client.send_until_closed(HOLDS[kind], at_most=1)
        for _ in range(5):
            begun = time.monotonic()
            assert wire.healthy()
            assert time.monotonic() - begun < 30
        assert wire.metric("ml_service_open_connections") <= 21
        assert wire.metric('ml_service_http_refusals_total{reason="too-many-connections"}') >= 30
        for client in held:
            client.close()


def test_a_running_request_is_not_closed_for_a_new_connection(start_wire: Start) -> None:
    with start_wire(**BRIEF_STOP, ML_SERVICE_MAX_CONNECTIONS="3") as wire:
        running = [wire.connect() for _ in range(3)]
        for client in running:
            client.send(wire.post(f"Content-Length: {len(wire.body)}", "Expect: 100-continue"))
            assert client.socket.recv(100).startswith(b"HTTP/1.1 100 "), "the service has read the head"
            client.send(wire.body[:-1])
        with wire.connect() as client:
            refused = client.answer()
        assert (refused.status, refused.problem) == (503, "too-many-connections")
        assert refused.header("retry-after") == "1"
        for client in running:
            assert client.send(wire.body[-1:]).answer().status == 200
            client.close()
        assert wire.healthy()


def test_the_longest_idle_connection_is_closed_first(start_wire: Start) -> None:
    with start_wire(**BRIEF_STOP, ML_SERVICE_MAX_CONNECTIONS="3") as wire:
        first, second, third = (wire.connect() for _ in range(3))
        for client in (second, third, first):
            assert client.send(head("GET", "/health")).answer().status == 200
        assert wire.healthy()
        second.closes(30)
        for client in (third, first):
            assert client.send(head("GET", "/health")).answer().status == 200
        for client in (first, second, third):
            client.close()


@pytest.mark.parametrize("descriptors", [64, 128, 256])
def test_a_service_with_few_file_descriptors_survives_more_connections(
    start_wire: Start, descriptors: int
) -> None:
    with start_wire(**BRIEF_STOP, descriptors=descriptors) as wire:
        held = []
        for _ in range(descriptors * 2):
            held.append(wire.connect())
            held[-1].send_until_closed(b"GET /", at_most=1)
        assert wire.healthy()
        assert wire.ask(wire.predict()).status == 200
        key = "kept"
        first, second = (wire.ask(wire.predict(f"Idempotency-Key: {key}")) for _ in range(2))
        assert (first.status, second.status) == (200, 200)  # the store needs file descriptors too
        assert second.header("idempotency-replayed") == "true"
        for client in held:
            client.close()
        assert wire.healthy()


def test_closed_connections_are_no_longer_counted(wire: Any) -> None:
    before = wire.metric("ml_service_open_connections")
    clients = [wire.connect() for _ in range(5)]
    for client in clients:
        assert client.send(head("GET", "/health")).answer().status == 200
    assert wire.metric("ml_service_open_connections") == before + 5
    for client in clients:
        client.close()
    until_sync(lambda: wire.metric("ml_service_open_connections") <= before)
