"""
What a stock uvicorn with httptools does that `ml-api serve` guards against, one function a fault (README.md).

    uv run docs/upstream/reproduce.py

Prints a line of JSON for each: whether it is still there, and what was seen. Loopback only; takes some ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
KEEP_ALIVE = 1  # s, which uvicorn is told
Seen = tuple[bool, object]


class Application:
    """Notes the headers and the body of each request; answers at once, reads first only under /read."""

    def __init__(self) -> None:
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.bodies: list[bytes] = []
        self.answer = b"ok"

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        body = b""
        if scope["path"] == "/read":
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
        self.headers.append(scope["headers"])
        self.bodies.append(body)
        length = str(len(self.answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": self.answer})


@contextlib.contextmanager
def serving(application: Application) -> Iterator[int]:
    """A stock uvicorn over httptools in a thread."""
    config = uvicorn.Config(
        application,
        port=0,
        http="httptools",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def connect(port: int) -> socket.socket:
    """A connection that waits three seconds, three times what uvicorn is told."""
    return socket.create_connection(("127.0.0.1", port), timeout=3 * KEEP_ALIVE)


def read_answer(connection: socket.socket) -> None:
    """Read a whole answer, whose head and body uvicorn sends apart."""
    received = b""
    while not received.endswith(b"ok"):
        received += connection.recv(4096)


def still_open(connection: socket.socket) -> bool:
    """Whether nothing, not even an end, comes within three seconds."""
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    except OSError:
        return False
    return False


def trailers_become_headers() -> Seen:
    """A trailer is appended to `scope["headers"]`, an Authorization too, and so are ten thousand of them."""
    application = Application()
    trailers = b"Authorization: alice\r\n" + b"a:\r\n" * 10_000
    with serving(application) as port, connect(port) as connection:
        connection.sendall(HEAD.replace(b"/ ", b"/read ") + CHUNKED + b"0\r\n" + trailers + b"\r\n")
        connection.recv(100)
    headers = application.headers[0]
    return (b"authorization", b"alice") in headers, f"{len(headers)} headers; two were sent"


def a_body_behind_an_upgrade_is_lost() -> Seen:
    """The body of a request that offers an upgrade is not delivered."""
    application = Application()
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n"
    with serving(application) as port, connect(port) as connection:
        connection.sendall(HEAD.replace(b"/ ", b"/read ") + offer + b"{}")
        connection.recv(100)
    return application.bodies[:1] != [b"{}"], f"the application read {application.bodies[0]!r}"


def a_body_behind_an_upgrade_is_run_as_a_request() -> Seen:
    """In a segment of its own, the same body is parsed as the next request."""
    application = Application()
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(GET)
    with serving(application) as port, connect(port) as connection:
        connection.sendall(HEAD + offer)
        connection.recv(100)
        connection.sendall(GET)
        with contextlib.suppress(TimeoutError):
            connection.recv(100)
    return len(application.bodies) == 2, f"{len(application.bodies)} requests were run; one was sent"


def a_blank_line_stops_the_keep_alive_timer() -> Seen:
    """After an answer, one blank line keeps the connection open for ever."""
    with serving(Application()) as port, connect(port) as connection:
        connection.sendall(GET)
        read_answer(connection)
        connection.sendall(b"\r\n")
        return still_open(connection), f"looked for {3 * KEEP_ALIVE} s, timeout_keep_alive={KEEP_ALIVE}"


def half_a_body_after_the_answer_keeps_the_connection() -> Seen:
    """After an answer that came before the request was whole, no timer runs."""
    with serving(Application()) as port, connect(port) as connection:
        connection.sendall(HEAD + b"Content-Length: 9\r\n\r\n")
        read_answer(connection)
        connection.sendall(b"x")
        return still_open(connection), f"looked for {3 * KEEP_ALIVE} s, timeout_keep_alive={KEEP_ALIVE}"


def a_body_is_swallowed_after_the_answer() -> Seen:
    """After an answer that came before the request was whole, everything sent is read and dropped."""
    with serving(Application()) as port, connect(port) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000000\r\n\r\n")
        connection.recv(4096)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 64 << 20:
                sent += connection.send(b"x" * 65_536)
    return sent >= 64 << 20, f"{sent} bytes were taken"


def an_answer_that_is_not_read_keeps_the_connection() -> Seen:
    """There is no time limit for writing."""
    application = Application()
    application.answer = b"x" * (32 << 20)
    with serving(application) as port, connect(port) as connection:
        connection.sendall(GET)
        time.sleep(4 * KEEP_ALIVE)  # longer than any timer that it was told of
        received = 0
        with contextlib.suppress(OSError):
            while received < len(application.answer) and (data := connection.recv(1 << 20)):
                received += len(data)
    return received >= len(
        application.answer
    ), f"{received} bytes came after {4 * KEEP_ALIVE} s without reading"


def blanks_behind_a_value_are_part_of_it() -> Seen:
    """A field value keeps the blanks behind it (RFC 9110, 5.5: they are no part of it)."""
    application = Application()
    with serving(application) as port, connect(port) as connection:
        connection.sendall(HEAD + b"Authorization: alice \t\r\nContent-Length: 0\r\n\r\n")
        connection.recv(100)
    value = dict(application.headers[0])[b"authorization"]
    return value != b"alice", f"{value!r}"


def no_host_and_two_hosts_are_answered() -> Seen:
    """A request without a Host, or with two, is answered (RFC 9112, 3.2: 400)."""
    application = Application()
    with serving(application) as port:
        for lines in (b"", b"Host: a\r\nHost: b\r\n"):
            with connect(port) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n" + lines + b"\r\n")
                connection.recv(100)
    return len(application.bodies) == 2, f"{len(application.bodies)} of 2 were run"


FAULTS: tuple[Callable[[], Seen], ...] = (
    trailers_become_headers,
    a_body_behind_an_upgrade_is_lost,
    a_body_behind_an_upgrade_is_run_as_a_request,
    a_blank_line_stops_the_keep_alive_timer,
    half_a_body_after_the_answer_keeps_the_connection,
    a_body_is_swallowed_after_the_answer,
    an_answer_that_is_not_read_keeps_the_connection,
    blanks_behind_a_value_are_part_of_it,
    no_host_and_two_hosts_are_answered,
)

if __name__ == "__main__":
    for fault in FAULTS:
        there, seen = fault()
        print(json.dumps({"fault": fault.__name__, "there": there, "seen": seen}), flush=True)
