"""Features of requests through the idempotent adapter: timeouts, raw reads, copies, errors."""

from __future__ import annotations

import copy
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from scripted_server import Server, redirecting
from urllib3.util import Timeout

from idempotency.client import Retry
from idempotency.client.requests import IdempotencyAdapter


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield IdempotencyAdapter(retry=Retry(timeout=20.0)).mount_on(session)


def _lines(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nfirst\nsecond\n")


@pytest.mark.parametrize(
    "timeout", [Timeout(total=20.0), Timeout(connect=20.0, read=20.0), Timeout(), (20.0, None)]
)
def test_requests_timeout_is_accepted_in_every_form(
    session: requests.Session, timeout: Any, serve: Callable[..., Server]
) -> None:
    assert session.post(serve(_lines).url, timeout=timeout).status_code == 200


def test_raw_response_can_be_read_by_lines(session: requests.Session, serve: Callable[..., Server]) -> None:
    url = serve(_lines).url
    with session.post(url, stream=True) as answer:
        assert list(answer.raw) == [b"first\n", b"second\n"]
    with session.post(url, stream=True) as answer:
        assert [answer.raw.readline(), answer.raw.read1(100), answer.raw.read1(100)] == [
            b"first\n",
            b"second\n",
            b"",
        ]


@pytest.mark.parametrize(
    "read",
    [
        list,
        lambda raw: raw.readline(),
        lambda raw: list(iter(lambda: raw.read1(1), b"")),
        lambda raw: raw.readinto(bytearray(1000)),
    ],
    ids=["lines", "readline", "read1", "readinto"],
)
def test_reading_the_raw_response_ends_at_the_deadline(
    read: Callable[[Any], Any], serve: Callable[..., Server]
) -> None:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        for _ in range(60):
            if stay.wait(0.05):
                return
            connection.sendall(b"x")

    stay = threading.Event()
    with requests.Session() as session:
        IdempotencyAdapter(retry=Retry(timeout=0.3)).mount_on(session)
        with session.post(serve(answer).url, stream=True) as response, pytest.raises(requests.ReadTimeout):
            read(response.raw)
    stay.set()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda answer: pickle.loads(pickle.dumps(answer))])
def test_response_can_be_copied_and_its_copied_request_sent_with_the_same_key(
    session: requests.Session, copied: Callable[[Any], Any], serve: Callable[..., Server]
) -> None:
    server = serve(_lines)
    again = copied(session.post(server.url))
    assert again.content == b"first\nsecond\n"
    session.send(again.request)
    first, second = [
        line
        for sent in server.requests
        for line in sent.split(b"\r\n")
        if line.startswith(b"Idempotency-Key")
    ]
    assert first == second


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_redirect_to_an_invalid_port_raises_the_error_of_requests(
    session: requests.Session, method: str, serve: Callable[..., Server]
) -> None:
    server = serve(redirecting(307, lambda: "http://127.0.0.1:99999/moved"))
    with pytest.raises(requests.exceptions.InvalidURL, match="Port out of range"):
        session.request(method, server.url)
