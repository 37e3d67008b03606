"""Pipelined requests: sent before the answers to earlier requests."""

from __future__ import annotations

from typing import Any

from raw_http import Client, head


def test_sixteen_pipelined_requests_are_answered_in_order(client: Client) -> None:
    client.send(b"".join(head("GET", "/health", f"X-Request-ID: {number}") for number in range(16)))
    assert [client.answer().header("x-request-id") for _ in range(16)] == [
        str(number) for number in range(16)
    ]
    assert client.send(head("GET", "/health")).answer().status == 200


def test_too_many_pipelined_requests_are_503_after_the_answers_to_earlier_ones(
    client: Client, wire: Any
) -> None:
    client.send(head("GET", "/health") * 5_000)
    statuses = []
    while (answer := client.answer()).status == 200:
        statuses.append(answer.status)
    assert (answer.status, answer.problem) == (503, "too-many-pipelined")
    assert 16 <= len(statuses) < 5_000
    client.closes()


def test_pipelined_requests_of_many_connections_take_little_memory(wire: Any) -> None:
    before = wire.resident()
    clients = [wire.connect() for _ in range(20)]
    for client in clients:
        client.send_until_closed(head("GET", "/health") * 1_000, at_most=1_000_000)
    assert wire.healthy()
    assert wire.resident() - before < 32 << 20
    for client in clients:
        client.close()
