"""A line to a server on a Unix socket that breaks when told: between, before and within messages."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["Break", "Line", "open_line"]


class Break(Enum):
    """The fate of one piece of data on the line, in either direction."""

    BEFORE = "before"
    """It is lost, and the line with it."""

    WITHIN = "within"
    """A part of it arrives."""

    AFTER = "after"
    """All of it arrives, and nothing that follows: of a request, the reply is lost."""


class Line:
    """
    Attributes:
        weather: What befalls each piece to come; None lets it pass.
        breaks: How often the line broke, and how.
    """

    def __init__(self, server: Path, chance: random.Random) -> None:
        self.weather: Iterator[Break | None] = iter(())
        self.breaks: Counter[Break] = Counter()
        self._server = server
        self._chance = chance

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either end hangs up or the line breaks."""
        ends, ways = [writer], set()
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._server)
            ends.append(to_server)
            ways = {
                asyncio.create_task(self._pump(reader, to_server)),
                asyncio.create_task(self._pump(from_server, writer)),
            }
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):  # asyncio's streams tell of a handler that was cancelled
            return
        finally:
            for way in ways:
                way.cancel()
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65_536):
                fault = next(self.weather, None)
                if fault is not None:
                    self.breaks[fault] += 1
                    part = {Break.BEFORE: 0, Break.AFTER: len(piece)}.get(fault)
                    writer.write(piece[: self._chance.randrange(len(piece)) if part is None else part])
                    await writer.drain()
                    return
                writer.write(piece)
                await writer.drain()


@asynccontextmanager
async def open_line(socket: Path, *, seed: int = 0) -> AsyncIterator[tuple[Line, str]]:
    """A line to the server at *socket*, and the directory in which its other end is, under the same name."""
    line = Line(socket, random.Random(seed))
    with TemporaryDirectory(prefix="line-") as directory:
        server = await asyncio.start_unix_server(line.carry, Path(directory, socket.name))
        async with server:
            yield line, directory
