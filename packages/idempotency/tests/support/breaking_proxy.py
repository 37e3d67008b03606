"""A proxy to a server on a Unix socket that breaks its connections on demand: before, within or after a message."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

__all__ = ["Break", "BreakingProxy", "start_breaking_proxy"]


class Break(Enum):
    """What happens to one piece of data on a connection, in either direction."""

    BEFORE = "before"
    """The piece is lost, and the connection is closed."""

    WITHIN = "within"
    """A part of the piece arrives, and the connection is closed."""

    AFTER = "after"
    """The piece arrives, and the connection is closed: of a request, the reply is lost."""


class BreakingProxy:
    """
    Attributes:
        faults: What happens to each piece to come; None lets it pass.
        breaks: How often a connection was broken, by kind.
    """

    def __init__(self, server: Path, random: Random) -> None:
        self.faults: Iterator[Break | None] = iter(())
        self.breaks: Counter[Break] = Counter()
        self._server = server
        self._random = random

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until either end closes it or a fault breaks it."""
        ends, pumps = [writer], set()
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._server)
            ends.append(to_server)
            pumps = {
                asyncio.create_task(self._pump(reader, to_server)),
                asyncio.create_task(self._pump(from_server, writer)),
            }
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):  # asyncio's streams log a cancelled handler
            return
        finally:
            for pump in pumps:
                pump.cancel()
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65_536):
                fault = next(self.faults, None)
                if fault is not None:
                    self.breaks[fault] += 1
                    part = {Break.BEFORE: 0, Break.AFTER: len(piece)}.get(fault)
                    writer.write(piece[: self._random.randrange(len(piece)) if part is None else part])
                    await writer.drain()
                    return
                writer.write(piece)
                await writer.drain()


@asynccontextmanager
async def start_breaking_proxy(socket: Path, *, seed: int = 0) -> AsyncIterator[tuple[BreakingProxy, str]]:
    """A proxy to the server at *socket*, and the directory that holds its own socket, under the same name."""
    proxy = BreakingProxy(socket, Random(seed))
    with TemporaryDirectory(prefix="proxy-") as directory:
        server = await asyncio.start_unix_server(proxy.relay, Path(directory, socket.name))
        async with server:
            yield proxy, directory
