"""
A call's time is a total, however slowly its answer comes; and its key, credentials and body stay at their origin.

Deadlines are tried for answers that trickle in every part: status line, headers, body of known length, chunks, a
close at the end; redirects for each status, method and direction. Each sync and async, by httpx and httpx2, over real
sockets.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from idempotency.client import AsyncIdempotencyTransport, IdempotencyTransport, Retry

pytestmark = pytest.mark.anyio

LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
COLOURS = pytest.mark.parametrize("colour", ["sync", "async"])


class Server:
    """Answers each connection's requests as told; remembers the whole of what was sent to it."""

    def __init__(self, answer: Callable[[socket.socket, bytes], None]) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=[connection], daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                sent = b""
                while b"\r\n\r\n" not in sent:
                    sent += connection.recv(65_536) or b"\r\n\r\n"
                head, _, body = sent.partition(b"\r\n\r\n")
                length = next(
                    (
                        int(line[15:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                while len(body) < length:
                    body += connection.recv(65_536)
                self.requests.append(head + b"\r\n\r\n" + body)
                self._answer(connection, head)
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[socket.socket, bytes], None]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def trickling(at_once: bytes, slowly: bytes, pause: float = 0.1) -> Callable[[socket.socket, bytes], None]:
    # Real time, since sockets have no other: a pause is a fifth of the deadline that it must not put off.
    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(at_once)
        for byte in slowly:
            time.sleep(pause)
            connection.sendall(bytes([byte]))

    return answer


CHUNKS = b"1\r\nx\r\n" * 20 + b"0\r\n\r\n"
TRICKLES = {
    "the status line": (b"", b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n"),
    "a header": (b"HTTP/1.1 201 Created\r\n", b"x-long: " + b"y" * 40 + b"\r\ncontent-length: 0\r\n\r\n"),
    "a body of known length": (b"HTTP/1.1 201 Created\r\ncontent-length: 40\r\n\r\n", b"x" * 40),
    "a long body of known length": (b"HTTP/1.1 201 Created\r\ncontent-length: 2000000\r\n\r\n", b"x" * 60),
    "chunks": (b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n", CHUNKS),
    "a body up to the close": (b"HTTP/1.1 201 Created\r\nconnection: close\r\n\r\n", b"x" * 40),
    "nothing": (b"HTTP/1.1 201 Created\r\ncontent-length: 9\r\n\r\nx", b""),
}


async def post(
    library: Any, colour: str, url: str, *, follow: bool = False, headers: Any = None, **given: Any
) -> Any:
    """What a client that knows no timeout of its own is answered."""
    method = given.pop("method", "POST")
    sent = {"json": {"cents": 500}, "headers": headers}
    if colour == "sync":
        transport = IdempotencyTransport(library.HTTPTransport(), **given)
        with library.Client(transport=transport, timeout=None, follow_redirects=follow) as client:
            return client.request(method, url, **sent)
    async_transport = AsyncIdempotencyTransport(library.AsyncHTTPTransport(), **given)
    async with library.AsyncClient(
        transport=async_transport, timeout=None, follow_redirects=follow
    ) as client:
        return await client.request(method, url, **sent)


@LIBRARIES
@COLOURS
@pytest.mark.parametrize("part", TRICKLES)
async def test_an_answer_that_trickles_ends_with_the_calls_time(
    library: ModuleType, colour: str, part: str, serve: Callable[..., Server]
) -> None:
    at_once, slowly = TRICKLES[part]
    stay = threading.Event()

    def answer(connection: socket.socket, head: bytes) -> None:
        trickling(at_once, slowly)(connection, head)
        stay.wait(5)

    server = serve(answer)
    began = time.monotonic()
    with pytest.raises(library.ReadTimeout) as late:  # type: ignore[attr-defined]
        await post(library, colour, server.url, retry=Retry(timeout=0.5, attempts=2))
    took = time.monotonic() - began
    stay.set()
    assert 0.4 < took < 1.5, "the whole of such an answer takes 2 to 6 s"
    assert "Retry.timeout" in str(late.value) or part == "nothing"
    assert len(server.requests) == 1


@LIBRARIES
@COLOURS
async def test_an_answer_that_comes_slowly_and_in_time_arrives_whole(
    library: ModuleType, colour: str, serve: Callable[..., Server]
) -> None:
    head = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n"
    server = serve(trickling(head, b"1\r\nx\r\n0\r\n\r\n", 0.01))
    answer = await post(library, colour, server.url, retry=Retry(timeout=20.0))
    assert (answer.status_code, answer.text) == (201, "x")


@COLOURS
async def test_an_event_stream_may_last_longer_than_the_calls_time(
    colour: str, serve: Callable[..., Server]
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    server = serve(trickling(head, b"data:1\n\n"))
    began = time.monotonic()
    answer = await post(httpx, colour, server.url, retry=Retry(timeout=0.3))
    assert answer.text == "data:1\n\n"
    assert time.monotonic() - began > 0.3


@COLOURS
async def test_a_call_may_be_given_all_the_time_there_is(colour: str, serve: Callable[..., Server]) -> None:
    server = serve(trickling(b"HTTP/1.1 201 Created\r\ncontent-length: 1\r\n\r\n", b"x", 0.01))
    answer = await post(httpx, colour, server.url, retry=Retry(timeout=float("inf")))
    assert answer.text == "x"


# Redirects.

SECRETS = {
    "X-API-Key": "secret-api-key",
    "Authorization": "Bearer secret-token",
    "X-Custom": "secret-custom",
    "Cookie": "session=secret-cookie",
}


def redirecting(status: int, to: Callable[[], str]) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, head: bytes) -> None:
        if b" /moved " in head.split(b"\r\n", 1)[0]:
            connection.sendall(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        else:
            connection.sendall(
                b"HTTP/1.1 %d Moved\r\nlocation: %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                % (status, to().encode())
            )

    return answer


@LIBRARIES
@COLOURS
@pytest.mark.parametrize(("status", "method"), [(307, "POST"), (308, "POST"), (301, "PATCH"), (307, "PATCH")])
async def test_a_redirect_that_keeps_the_body_goes_to_no_other_origin(
    library: ModuleType, colour: str, status: int, method: str, serve: Callable[..., Server]
) -> None:
    other = serve(redirecting(200, str))
    server = serve(redirecting(status, lambda: f"{other.url}/moved"))
    with pytest.raises(library.RequestError, match="trusted_origins") as refused:  # type: ignore[attr-defined]
        await post(library, colour, server.url, follow=True, headers=SECRETS, method=method)
    assert not isinstance(refused.value, library.TransportError), "nobody repeats it"  # type: ignore[attr-defined]
    assert (len(server.requests), other.requests) == (1, [])


@LIBRARIES
@COLOURS
@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_to_get_elsewhere_takes_neither_key_nor_credentials_with_it(
    library: ModuleType, colour: str, status: int, serve: Callable[..., Server]
) -> None:
    other = serve(redirecting(200, str))
    server = serve(redirecting(status, lambda: f"{other.url}/moved"))
    answer = await post(library, colour, server.url, follow=True, headers=SECRETS)
    assert answer.text == "ok"
    (arrived,) = other.requests
    assert arrived.startswith(b"GET /moved ")
    assert b"secret" not in arrived
    assert b"idempotency-key" not in arrived.lower()
    assert arrived.endswith(b"\r\n\r\n"), "no body"


@LIBRARIES
@COLOURS
async def test_a_redirect_to_the_same_origin_is_the_same_operation(
    library: ModuleType, colour: str, serve: Callable[..., Server]
) -> None:
    server = serve(redirecting(307, lambda: "/moved"))
    answer = await post(library, colour, f"{server.url}/first", follow=True, headers=SECRETS)
    assert answer.text == "ok"
    keys = {
        line
        for sent in server.requests
        for line in sent.split(b"\r\n")
        if line.lower().startswith(b"idempotency")
    }
    assert (len(server.requests), len(keys)) == (2, 1)
    assert b"secret-api-key" in server.requests[1]
    assert server.requests[1].endswith(b'{"cents":500}')


@COLOURS
async def test_a_redirect_to_a_trusted_origin_is_followed_with_all_that_was_sent(
    colour: str, serve: Callable[..., Server]
) -> None:
    other = serve(redirecting(200, str))
    server = serve(redirecting(307, lambda: f"{other.url}/moved"))
    answer = await post(
        httpx,
        colour,
        server.url,
        follow=True,
        headers=SECRETS,
        trusted_origins=[other.url.replace("http", "HTTP")],
    )
    assert answer.text == "ok"
    assert b"secret-api-key" in other.requests[0]


def test_what_is_no_origin_is_refused_at_set_up() -> None:
    for wrong in ["api.example", "https://api.example/path", "https://u:p@api.example", "https://a:x", ""]:
        with pytest.raises(ValueError, match="scheme and a host") as refused:
            IdempotencyTransport(httpx.MockTransport(lambda _: httpx.Response(200)), trusted_origins=[wrong])
        assert "u:p" not in str(refused.value)
    with pytest.raises(TypeError, match="collection"):
        IdempotencyTransport(
            httpx.MockTransport(lambda _: httpx.Response(200)), trusted_origins="https://api.example"
        )


def test_a_request_object_that_is_sent_again_is_no_redirect() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Idempotency-Key"])
        return httpx.Response(201)

    with httpx.Client(transport=IdempotencyTransport(httpx.MockTransport(answer))) as client:
        request = client.build_request("POST", "https://shop.example/charges")
        client.send(request)
        client.send(request)
    assert len(set(seen)) == 1
    assert len(seen) == 2


def test_no_thread_is_left_behind_by_calls_that_ended() -> None:
    with httpx.Client(
        transport=IdempotencyTransport(httpx.MockTransport(lambda _: httpx.Response(201, json={})))
    ) as client:
        for _ in range(20):
            client.post("https://shop.example/charges")
    deadline = time.monotonic() + 5
    while any(thread.name == "idempotency-client" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread waits for nobody"
        time.sleep(0.01)  # a thread that was told to end needs a moment of the interpreter
