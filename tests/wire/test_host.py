"""A request needs exactly one valid Host (RFC 9112, 3.2)."""

from __future__ import annotations

from typing import Any

import pytest
from raw_http import Client, head

GOOD = [
    "service",
    "service:8000",
    "127.0.0.1:8000",
    "[::1]:8000",
    "ml_service.svc.cluster.local",
    "a.example.",
    "",
]
BAD = [
    "a b",
    "a/b",
    "user@service",
    "a, b",
    "a,b",
    "http://service",
    "service:port",
    "service:80:80",
    "[::1",
    "service?x",
    "service#x",
    'ser"vice',
    "ser\\vice",
    "a%zz",
    "sërvice",
]


@pytest.mark.parametrize("host", GOOD)
def test_a_valid_host_is_answered(client: Client, host: str) -> None:
    assert client.send(head("GET", "/health", host=host)).answer().status == 200


@pytest.mark.parametrize("host", BAD)
def test_an_invalid_host_is_400(client: Client, host: str) -> None:
    answer = client.send(head("GET", "/health", host=host)).answer()
    assert answer.status == 400
    client.closes()


@pytest.mark.parametrize("path", ["/health", "/predict", "/docs", "/no-such-path"])
@pytest.mark.parametrize(
    "lines",
    [(), ("Host: service", "Host: service"), ("Host: service", "host: other"), ("Host: service", "HOST:")],
    ids=["none", "two that are equal", "two that differ", "one of two empty"],
)
def test_a_missing_or_repeated_host_is_400_for_every_path(
    client: Client, path: str, lines: tuple[str, ...]
) -> None:
    answer = client.send(head("GET", path, *lines, host=None)).answer()
    assert (answer.status, answer.problem) == (400, "bad-request")
    client.closes()


def test_a_repeated_host_is_400_in_http_1_0(client: Client) -> None:
    answer = client.send(head("GET", "/health", "Host: a", "Host: b", host=None, version="1.0")).answer()
    assert answer.status == 400


def test_a_request_without_a_host_is_not_decided(client: Client, wire: Any, own_key: str) -> None:
    lines = (f"X-API-Key: {wire.api_key}", f"Idempotency-Key: {own_key}", f"Content-Length: {len(wire.body)}")
    assert client.send(head("POST", "/predict", *lines, host=None) + wire.body).answer().status == 400
    assert wire.ask(wire.predict(f"Idempotency-Key: {own_key}")).header("idempotency-replayed") is None


def test_an_absolute_target_is_answered_as_its_path(client: Client) -> None:
    assert client.send(head("GET", "http://service/health")).answer().status == 200
