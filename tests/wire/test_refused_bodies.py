"""The rest of the body of a refused request is read up to a limit, so that the client can read the refusal."""

from __future__ import annotations

from typing import Any

import pytest
from raw_http import Client, chunk

CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize("declared", ["Content-Length: 1000000000000", CHUNKED])
@pytest.mark.parametrize("key", [None, "wrong"])
def test_the_body_of_a_refused_request_is_read_only_up_to_a_limit(
    client: Client, wire: Any, declared: str, key: str | None
) -> None:
    part = chunk(b"x" * 65_536) if declared == CHUNKED else b"x" * 65_536
    client.send(wire.post(declared, key=key))
    sent = client.send_until_closed(part, at_most=1 << 30)
    assert sent < 64 << 20


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_a_client_that_sends_its_whole_body_first_reads_the_refusal(
    client: Client, wire: Any, size: int
) -> None:
    client.send(wire.post(f"Content-Length: {size}", key=None), b"x" * size)
    answer = client.answer()
    assert answer.status == 401


def test_a_refused_complete_request_keeps_its_connection(client: Client, wire: Any) -> None:
    for _ in range(2):
        request = wire.post(f"Content-Length: {len(wire.body)}", key="wrong")
        assert client.send(request + wire.body).answer().status == 401
    assert client.send(wire.predict()).answer().status == 200
