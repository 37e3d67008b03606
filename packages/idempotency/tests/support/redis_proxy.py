"""
A proxy that reads the Redis protocol and loses requests, replies or connections on demand.

It runs in a thread of its own, so stores with and without an event loop can be tested through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

__all__ = ["Action", "Proxy", "start_proxy"]

Action: TypeAlias = Literal["lose request", "lose reply", "hang"] | bytes
"""What happens to a command; bytes are sent to the client instead of the server's reply."""


class Proxy:
    """
    One server as seen through a faulty network.

    Attributes:
        port: To connect to on the loopback.
        commands: The names of the commands that came, in order.
    """

    def __init__(self, upstream: int) -> None:
        self.port = 0
        self.commands: list[str] = []
        self._upstream = upstream
        self._faults: list[tuple[str, Action]] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def fail_next(self, command: str, action: Action) -> None:
        """Let *action* happen to the next *command* that comes; several are used up in the order they were given."""
        self._faults.append((command, action))

    def cut(self) -> None:
        """Close every connection, as a server that restarts does."""
        assert self._loop is not None
        done = threading.Event()

        def close() -> None:
            for writer in self._open:
                writer.transport.abort()
            done.set()

        self._loop.call_soon_threadsafe(close)
        done.wait(30)

    def run(self, started: Callable[[], None]) -> None:
        asyncio.run(self._serve(started))

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def _serve(self, started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started()
        await self._stopped.wait()
        server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            while await self._command(reader, writer, upstream, to_upstream):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()  # both before waiting for either: the loop may be ending
            to_upstream.close()
            with contextlib.suppress(OSError):
                await asyncio.gather(writer.wait_closed(), to_upstream.wait_closed())

    async def _command(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: asyncio.StreamReader,
        to_upstream: asyncio.StreamWriter,
    ) -> bool:
        """Pass one command on, and its reply back; False ends the connection."""
        frame = await _read_frame(reader)
        name = frame.split(b"\r\n")[2].decode().upper()
        self.commands.append(name)
        action = self._take_fault(name)
        if action == "lose request":
            return False
        if isinstance(action, bytes):
            writer.write(action)
            await writer.drain()
            return True
        to_upstream.write(frame)
        await to_upstream.drain()
        reply = await _read_frame(upstream)
        if action == "lose reply":
            return False
        if action == "hang":
            await reader.read()  # until the client gives up
            return False
        writer.write(reply)
        await writer.drain()
        return True

    def _take_fault(self, name: str) -> Action | None:
        for fault in self._faults:
            if fault[0] == name:
                self._faults.remove(fault)
                return fault[1]
        return None


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    """One value of the protocol (RESP2), whole."""
    line = await reader.readuntil(b"\r\n")
    kind, size = line[:1], line[1:-2]
    if kind == b"$" and size != b"-1":
        return line + await reader.readexactly(int(size) + 2)
    if kind == b"*" and size != b"-1":
        return line + b"".join([await _read_frame(reader) for _ in range(int(size))])
    return line


@contextmanager
def start_proxy(upstream: int) -> Iterator[Proxy]:
    """A proxy in front of port *upstream* of the loopback."""
    proxy = Proxy(upstream)
    started = threading.Event()
    thread = threading.Thread(target=proxy.run, args=(started.set,), name="redis-proxy")
    thread.start()
    assert started.wait(60)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(30)
