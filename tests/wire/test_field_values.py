"""Spaces and tabs around the value of a header are not part of it (RFC 9110, 5.5)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from raw_http import Client, head

AROUND = ["{}", " {}", "{} ", "{}\t", "\t {} \t ", "{}    "]


@pytest.mark.parametrize("around", AROUND)
def test_white_space_around_an_api_key_is_ignored(client: Client, wire: Any, around: str) -> None:
    lines = (f"X-API-Key:{around.format(wire.api_key)}", "Content-Type: application/json")
    request = head("POST", "/predict", *lines, f"Content-Length: {len(wire.body)}") + wire.body
    assert client.send(request).answer().status == 200


@pytest.mark.parametrize("around", AROUND)
def test_white_space_around_an_idempotency_key_is_ignored(
    client: Client, wire: Any, around: str, own_key: str
) -> None:
    first = client.send(wire.predict(f"Idempotency-Key: {own_key}")).answer()
    second = client.send(wire.predict(f"Idempotency-Key:{around.format(own_key)}")).answer()
    assert second.header("idempotency-replayed") == "true"
    assert second.body == first.body


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Content-Type: application/json\t", 200),
        ("Content-Type:\tapplication/json ; charset=utf-8 ", 200),
        ("Content-Type: text/plain ", 415),
    ],
)
def test_white_space_around_a_media_type_is_ignored(
    client: Client, wire: Any, line: str, status: int
) -> None:
    lines = (f"X-API-Key: {wire.api_key}", line, f"Content-Length: {len(wire.body)} ")
    assert client.send(head("POST", "/predict", *lines) + wire.body).answer().status == status


def test_white_space_around_a_request_id_is_removed(client: Client) -> None:
    answer = client.send(head("GET", "/health", "X-Request-ID:  mine \t")).answer()
    assert answer.header("x-request-id") == "mine"


def test_white_space_after_an_expectation_is_ignored(client: Client, wire: Any) -> None:
    client.send(wire.post(f"Content-Length: {len(wire.body)}", "Expect: 100-continue \t"))
    assert client.socket.recv(12) == b"HTTP/1.1 100"
    client._read = b"HTTP/1.1 100"
    answer = client.send(wire.body).answer()
    assert answer.status == 200
    assert json.loads(answer.body)["schemaVersion"] == "1.0"


@pytest.mark.parametrize("value", [" close", "close ", "\tclose\t", "Close"])
def test_white_space_around_connection_close_is_ignored(client: Client, value: str) -> None:
    assert client.send(head("GET", "/health", f"Connection:{value}")).answer().status == 200
    client.closes()
