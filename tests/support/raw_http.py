"""HTTP/1.1 over a socket: requests are sent as written, byte by byte, and answers are parsed strictly."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Self

import pytest

__all__ = ["PATIENCE", "Answer", "Client", "chunk", "head"]

PATIENCE = 30.0  # s: a limit for a busy machine, not the expected time


@dataclass(frozen=True)
class Answer:
    """One answer, read from a connection."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value for given, value in self.headers if given == name]
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def problem(self) -> str:
        """The last part of the type of the problem document."""
        assert self.header("content-type") == "application/problem+json", self
        return str(json.loads(self.body)["type"]).rpartition(":")[2]


class Client:
    """One TCP connection from the address *source*."""

    def __init__(self, port: int, *, receive_buffer: int | None = None, source: str = "127.0.0.1") -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        try:
            if source != "127.0.0.1":
                self.socket.bind((source, 0))
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self._read = b""

    def send(self, *parts: bytes) -> Client:
        """Send each part by a separate call."""
        for part in parts:
            self.socket.sendall(part)
        return self

    def send_until_closed(self, part: bytes, *, at_most: int) -> int:
        """Send *part* repeatedly until the service closes or *at_most* bytes are sent; return the number of bytes."""
        sent = 0
        try:
            while sent < at_most:
                self.socket.sendall(part)
                sent += len(part)
        except OSError:
            pass
        return sent

    def answer(self) -> Answer:
        """Read one final answer, after any interim ones."""
        while True:
            while b"\r\n\r\n" not in self._read:
                self._more()
            lines_read, _, self._read = self._read.partition(b"\r\n\r\n")
            status_line, *lines = lines_read.decode("latin-1").split("\r\n")
            version, status = status_line.split(" ")[:2]
            assert version == "HTTP/1.1", status_line
            if not status.startswith("1"):
                break
        headers = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)
        ]
        length = int(dict(headers).get("content-length", "0"))
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return Answer(int(status), headers, body)

    def closes(self, within: float = PATIENCE) -> bytes:
        """Wait until the service closes, and return the remaining bytes; fail if it stays open."""
        self.socket.settimeout(within)
        try:
            while True:
                self._more()
        except TimeoutError:
            pytest.fail(f"the connection is still open after {within:g} s")
        except OSError:
            return self._read

    def _more(self) -> None:
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionResetError("the service closed the connection")
        self._read += data

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def head(method: str, target: str, *lines: str, version: str = "1.1", host: str | None = "service") -> bytes:
    """The head of a request."""
    named = (f"Host: {host}",) if host is not None else ()
    return "\r\n".join((f"{method} {target} HTTP/{version}", *named, *lines, "", "")).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
