"""A server on a plain socket whose responses a test scripts; for tests of clients."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable


class Server:
    """Answers the request of each connection by a function, and keeps the bytes of every request."""

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
            threading.Thread(target=self._serve_connection, args=[connection], daemon=True).start()

    def _serve_connection(self, connection: socket.socket) -> None:
        with connection:
            try:
                sent = b""
                while b"\r\n\r\n" not in sent:
                    part = connection.recv(65_536)
                    if not part:
                        return  # closed before its request was whole
                    sent += part
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
                    part = connection.recv(65_536)
                    if not part:
                        return
                    body += part
                self.requests.append(head + b"\r\n\r\n" + body)
                self._answer(connection, head)
            except OSError:
                return

    def close(self) -> None:
        # Wakes the thread: blocked in accept(), it might take the connections of the next socket with this file number.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def trickling(at_once: bytes, slowly: bytes, pause: float = 0.1) -> Callable[[socket.socket, bytes], None]:
    # Real time: the client times its socket by the real clock.
    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(at_once)
        for byte in slowly:
            time.sleep(pause)  # the client times its socket by the real clock
            connection.sendall(bytes([byte]))

    return answer


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
