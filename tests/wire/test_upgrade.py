"""A request that offers another protocol is served as if it did not, including its body (RFC 9110, 7.8)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from raw_http import Client, chunk, head

OFFERS = {
    "h2c": (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    ),
    "h2c without settings": ("Connection: upgrade", "Upgrade: h2c"),
    "websocket": (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
    "TLS": ("Connection: Upgrade", "Upgrade: TLS/1.0, HTTP/1.1"),
    "something": ("Connection: keep-alive, upgrade", "Upgrade: something"),
    "no protocol": ("Connection: upgrade", "Upgrade: "),
    "settings alone": ("Connection: HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
}


@pytest.fixture(params=OFFERS)
def offer(request: pytest.FixtureRequest) -> tuple[str, ...]:
    lines: tuple[str, ...] = OFFERS[request.param]
    return lines


@pytest.mark.parametrize("sent", ["at once", "behind its headers", "byte by byte"])
@pytest.mark.parametrize("framed", ["by a length", "in chunks"])
def test_the_body_of_a_request_with_an_upgrade_offer_is_read(
    client: Client, wire: Any, offer: tuple[str, ...], sent: str, framed: str
) -> None:
    if framed == "by a length":
        request, body = wire.post(f"Content-Length: {len(wire.body)}", *offer), wire.body
    else:
        request, body = (
            wire.post("Transfer-Encoding: chunked", *offer),
            chunk(wire.body) + b"0\r\nx-a: b\r\n\r\n",
        )
    if sent == "at once":
        client.send(request + body)
    elif sent == "behind its headers":
        client.send(request, body)
    else:
        client.send(request, *(body[at : at + 1] for at in range(20)), body[20:])
    answer = client.answer()
    assert answer.status == 200
    assert json.loads(answer.body)["schemaVersion"] == "1.0"
    assert client.send(head("GET", "/health")).answer().status == 200


def test_a_request_hidden_in_the_body_is_not_run(client: Client, wire: Any, offer: tuple[str, ...]) -> None:
    hidden = head("GET", "/health")
    client.send(wire.post(f"Content-Length: {len(hidden)}", *offer), hidden)
    assert client.answer().status == 422  # it is not JSON
    client.send(head("GET", "/openapi.json"))
    assert "openapi" in json.loads(client.answer().body)  # and not the hidden /health


def test_requests_with_an_offer_and_no_body_are_answered(client: Client, offer: tuple[str, ...]) -> None:
    client.send(head("GET", "/health", *offer) + head("GET", "/health"))
    assert [client.answer().status for _ in range(2)] == [200, 200]
    assert client.send(head("GET", "/health", *offer)).answer().status == 200


def test_several_requests_with_an_offer_on_one_connection_are_answered(
    client: Client, wire: Any, offer: tuple[str, ...]
) -> None:
    request = wire.post(f"Content-Length: {len(wire.body)}", *offer) + wire.body
    client.send(request * 3)
    assert [client.answer().status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("path", ["/predict", "/health", "/no-such-path"])
def test_an_upgrade_offer_does_not_replace_the_api_key(
    client: Client, wire: Any, offer: tuple[str, ...], path: str
) -> None:
    request = head("POST", path, f"Content-Length: {len(wire.body)}", *offer)
    answer = client.send(request + wire.body).answer()
    assert answer.status == {"/predict": 401, "/health": 405, "/no-such-path": 401}[path]


def test_a_request_with_an_offer_is_replayed_by_its_key(
    client: Client, wire: Any, offer: tuple[str, ...], own_key: str
) -> None:
    request = wire.post(f"Content-Length: {len(wire.body)}", f"Idempotency-Key: {own_key}", *offer)
    first, second = (client.send(request, wire.body).answer() for _ in range(2))
    assert (first.status, second.status) == (200, 200)
    assert second.header("idempotency-replayed") == "true"
    assert second.body == first.body


def test_an_api_key_in_a_trailer_after_an_offer_is_401(
    client: Client, wire: Any, offer: tuple[str, ...]
) -> None:
    trailer = f"0\r\nX-API-Key: {wire.api_key}\r\n\r\n".encode()
    client.send(wire.post("Transfer-Encoding: chunked", *offer, key=None), chunk(wire.body) + trailer)
    assert client.answer().status == 401


def test_endless_trailers_after_an_offer_are_cut_off(
    client: Client, wire: Any, offer: tuple[str, ...]
) -> None:
    client.send(wire.post("Transfer-Encoding: chunked", *offer), chunk(wire.body), b"0\r\n")
    assert client.send_until_closed(b"a:\r\n" * 1000, at_most=1 << 26) < 1 << 26
