"""Duplicates, killed workers and client disconnects, over two worker processes of gunicorn, threads or greenlets."""

from __future__ import annotations

import http.client
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from gunicorn_server import WORKERS, Gunicorn, start_gunicorn
from patience import until_sync
from wsgi_driver import Answer

HELD = ["/held", "/late/held", "/flask/held"]
DOOMED = ["/doomed", "/late/doomed", "/flask/doomed"]
BROKEN = (ConnectionError, http.client.HTTPException)


@pytest.fixture(scope="module", params=[*WORKERS])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with start_gunicorn(request.param, tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture
def server(running: Gunicorn) -> Gunicorn:
    """The server, without effects and records."""
    running.effects.forget()
    return running


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def send_only(port: int, path: str, *, key: str = "k", body: bytes = b"{}") -> socket.socket:
    """A client that has sent its request; `reset` disconnects it."""
    client = socket.create_connection(("127.0.0.1", port), 30)
    client.sendall(
        f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {key}\r\n\r\n".encode()
        + body
    )
    return client


def reset(client: socket.socket) -> None:
    """Close the connection, with RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# Duplicates over two processes.


@pytest.mark.parametrize("path", HELD)
def test_eight_duplicates_in_two_processes_have_one_effect(
    server: Gunicorn, clients: ThreadPoolExecutor, path: str
) -> None:
    sent = [clients.submit(server.send, path) for _ in range(8)]
    server.gate.wait().go_on()
    answers = [answer.result() for answer in sent]
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 7
    assert server.effects.bodies == [b"{}"]


def test_duplicate_waits_only_if_it_prefers_to_under_gunicorn(
    server: Gunicorn, clients: ThreadPoolExecutor
) -> None:
    path = "/held-impatient"
    first = clients.submit(server.send, path)
    held = server.gate.wait()
    refused = server.send(path)
    assert (refused.status, int(refused.values("retry-after")[0]) >= 1) == (409, True)
    waiting = clients.submit(server.send, path, headers={"Prefer": "wait=20"})
    held.go_on()
    assert (first.result().status, waiting.result().replayed) == (201, True)
    assert server.effects.bodies == [b"{}"]


@pytest.mark.rule("E3")
def test_run_that_outlives_its_lease_keeps_its_key(server: Gunicorn, clients: ThreadPoolExecutor) -> None:
    first = clients.submit(server.send, "/doomed-once")
    held = server.gate.wait()
    lease_left, renewals = 0.0, 0

    def is_renewed_beyond_the_lease() -> bool:
        nonlocal lease_left, renewals
        now_left = server.effects.store.scan().records[0].lease_left
        renewals += now_left > lease_left
        lease_left = now_left
        return renewals >= 6  # the claim, and five renewals at intervals of a third of the lease

    until_sync(is_renewed_beyond_the_lease, "the lease is renewed five times")
    assert b"in-progress" in server.send("/doomed-once").body
    held.go_on()
    assert first.result().status == 201
    assert server.effects.bodies == [b"{}"]


@pytest.mark.rule("E9")
def test_encoded_slash_and_slash_are_one_path(server: Gunicorn) -> None:
    """WSGI servers decode the path."""
    assert [server.send(path).replayed for path in ("/orders/1", "/orders%2F1")] == [False, True]


# Killed workers.


def broke_off(request: Future[Answer]) -> bool:
    """Whether its client saw the connection break."""
    return isinstance(request.exception(), BROKEN)


@pytest.mark.parametrize("path", DOOMED)
def test_run_of_a_worker_killed_before_its_effect_is_taken_over(
    server: Gunicorn, clients: ThreadPoolExecutor, path: str
) -> None:
    first = clients.submit(server.send, path)
    server.gate.wait().kill()
    assert broke_off(first)
    again = clients.submit(server.send, path)
    server.gate.wait().go_on()
    assert (again.result().status, again.result().replayed) == (201, False)
    assert server.effects.bodies == [b"{}"]


@pytest.mark.rule("E4")
def test_run_of_a_worker_killed_between_effect_and_response_is_repeated_at_least_once(
    server: Gunicorn, clients: ThreadPoolExecutor
) -> None:
    first = clients.submit(server.send, "/doomed-after-effect")
    server.gate.wait().kill()
    assert broke_off(first)
    again = clients.submit(server.send, "/doomed-after-effect")
    server.gate.wait().go_on()
    assert again.result().status == 201
    assert server.effects.bodies == [b"{}"] * 2, "at least once; complete_in makes it effectively once"
    assert server.send("/doomed-after-effect").replayed


def test_run_of_a_killed_worker_is_never_repeated_at_most_once(
    server: Gunicorn, clients: ThreadPoolExecutor
) -> None:
    first = clients.submit(server.send, "/doomed-once")
    server.gate.wait().kill()
    assert broke_off(first)
    until_sync(lambda: b"outcome-unknown" in server.send("/doomed-once").body, "the lease ends")
    assert server.send("/doomed-once").status == 409
    assert server.effects.bodies == []


# Client disconnects.


@pytest.mark.rule("E5")
@pytest.mark.parametrize("path", HELD)
def test_handler_completes_and_is_recorded_after_its_client_disconnects(server: Gunicorn, path: str) -> None:
    client = send_only(server.port, path)
    held = server.gate.wait()
    reset(client)
    held.go_on()
    again = server.send(path)
    assert (again.status, again.replayed, server.effects.bodies) == (201, True, [b"{}"])


def test_disconnect_of_a_waiting_duplicate_affects_no_other_request_under_gunicorn(
    server: Gunicorn, clients: ThreadPoolExecutor
) -> None:
    first = clients.submit(server.send, "/held")
    held = server.gate.wait()
    reset(send_only(server.port, "/held"))
    last = clients.submit(server.send, "/held")
    held.go_on()
    assert (first.result().status, last.result().replayed) == (201, True)
    assert server.effects.bodies == [b"{}"]


@pytest.mark.rule("E1")
def test_response_is_replayed_after_the_client_disconnected_while_receiving_it(server: Gunicorn) -> None:
    client = send_only(server.port, "/megabyte")
    assert client.recv(1)
    reset(client)
    again = server.send("/megabyte")
    assert (again.status, again.body, again.replayed) == (200, b"x" * 1_000_000, True)
    assert server.effects.bodies == [b"{}"]


def test_stream_is_closed_and_not_rerun_after_its_client_disconnects(server: Gunicorn) -> None:
    client = send_only(server.port, "/events")
    assert client.recv(1)
    reset(client)
    until_sync(lambda: "closed " in server.effects.notes, "the stream is closed")
    assert server.send("/events").status == 409
    assert server.effects.bodies == [b"{}"]


@pytest.mark.parametrize("path", ["/charges", "/late/charges", "/flask/charges"])
def test_client_disconnect_before_complete_body_runs_and_claims_nothing(server: Gunicorn, path: str) -> None:
    """The client closes its sending side only, so that it reads the response: the server reads an end, and no error."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\nIdempotency-Key: k\r\n\r\n"
        client.sendall(head.encode() + b"amount=1")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert (server.effects.bodies, server.effects.store.scan().records) == ([], ())
