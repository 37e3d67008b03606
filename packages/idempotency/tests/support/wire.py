"""Clients over plain sockets: HTTP/1.1 byte by byte, and HTTP/2 with prior knowledge."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import Self

import h2.config
import h2.connection
import h2.events

__all__ = ["Http2", "Response", "Wire", "post"]


class Response:
    """A response as it was received."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def values(self, name: str) -> list[bytes]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower().encode()]

    @property
    def replayed(self) -> bool:
        """Whether the middleware marked the response as a replay."""
        return self.values("idempotency-replayed") == [b"true"]

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.headers} {self.body[:200]!r}>"


class Wire:
    """One HTTP/1.1 connection, read and written by the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Self:
        """Open a connection to the loopback."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close at once, with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def response(self, *, method: str = "POST") -> Response:
        """Read one response; its framing must be consistent (RFC 9112, 6.3)."""
        status, headers = await self.head()
        if status < 200:  # an interim response
            return await self.response(method=method)
        lengths = [value for name, value in headers if name == b"content-length"]
        codings = [value for name, value in headers if name == b"transfer-encoding"]
        assert len(lengths) + len(codings) <= 1, f"two framings: {headers}"
        if method == "HEAD" or status in {204, 304}:
            body = b""
        elif codings:
            assert codings == [b"chunked"]
            body = b"".join([chunk async for chunk in self.chunks()])
        elif lengths:
            body = await self.reader.readexactly(int(lengths[0]))
        else:
            body = await self.reader.read()
        return Response(status, headers, body)

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Read a status line and headers; names in lower case."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = []
        for line in lines[1:-2]:
            name, _, value = line.partition(b":")
            headers.append((name.lower(), value.strip()))
        return int(lines[0].split()[1]), headers

    async def chunks(self):  # type: ignore[no-untyped-def]
        """The chunks of a chunked body, as they arrive."""
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()


def request(
    path: str,
    key: str | None,
    body: bytes,
    *,
    method: str = "POST",
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    """The bytes of one HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if key is not None:
        lines.append(f'idempotency-key: "{key}"')
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def post(
    port: int,
    path: str = "/charges",
    *,
    key: str | None = None,
    body: bytes = b"{}",
    method: str = "POST",
    headers: Iterable[tuple[str, str]] = (),
) -> Response:
    """One request on a connection of its own."""
    async with await Wire.connect(port) as wire:
        await wire.send(request(path, key, body, method=method, headers=headers))
        return await wire.response(method=method)


class Http2:
    """One HTTP/2 connection without TLS, prior knowledge (RFC 9113, 3.3)."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self._unsent: dict[int, tuple[bytes, bool]] = {}

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._h2.initiate_connection()
        self._flush()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())

    def start(
        self, path: str, key: str | None, body: bytes, *, method: str = "POST", end_stream: bool = True
    ) -> int:
        """Send a request; its stream."""
        stream = self._h2.get_next_available_stream_id()
        headers = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "test")]
        if key is not None:
            headers.append(("idempotency-key", f'"{key}"'))
        self._h2.send_headers(stream, headers)
        self._unsent[stream] = (body, end_stream)
        self._send_more(stream)
        return stream

    def _send_more(self, stream: int) -> None:
        """Send what the server's flow control lets pass."""
        body, end_stream = self._unsent.pop(stream, (b"", False))
        while body:
            room = min(
                self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(body)
            )
            if not room:
                self._unsent[stream] = (body, end_stream)
                break
            self._h2.send_data(stream, body[:room])
            body = body[room:]
        else:
            if end_stream:
                self._h2.end_stream(stream)
        self._flush()

    def reset(self, stream: int) -> None:
        """Reset a stream (RST_STREAM)."""
        self._h2.reset_stream(stream)
        self._flush()

    async def response(self, stream: int) -> Response:
        """Read until the response on *stream* is complete."""
        status, headers, body = 0, [], b""
        while True:
            data = await self._reader.read(65_536)
            assert data, "the server closed the connection"
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.WindowUpdated) and stream in self._unsent:
                    self._send_more(stream)
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    headers = [(bytes(name), bytes(value)) for name, value in event.headers]
                    status = int(next(value for name, value in headers if name == b":status"))
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamReset):
                    raise ConnectionResetError(f"stream {stream} was reset")
                elif isinstance(event, h2.events.StreamEnded):
                    self._flush()
                    return Response(status, headers, body)
            self._flush()
