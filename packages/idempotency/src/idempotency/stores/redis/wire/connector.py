"""
Opens connections; one that is not open by its caller's deadline goes on in the background, for a later call.

Otherwise a server whose name takes longer to look up than a deadline would never be reached: each call would start a
new lookup and abandon it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Connector"]

# s: the default time of a resolver (three servers, asked twice, 5 s each); after that a new try is better.
_LONGEST = 30.0


class Connector:
    """
    Opens connections to one address, at most one of them in the background.

    Args:
        connect: Makes a connection that is not open yet.
        late: Called with each connection that opened too late for its caller.
    """

    def __init__(self, connect: Callable[[], Any], late: Callable[[Any], None]) -> None:
        self._connect, self._late = connect, late
        self._abandoned: asyncio.Task[Any] | None = None

    async def open(self) -> Any:
        """An open connection. If the caller is cancelled, opening goes on in the background, for one at a time."""
        opening = asyncio.create_task(self._open())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._abandon(opening)
            raise

    async def aclose(self) -> None:
        """Stop opening in the background."""
        if self._abandoned is not None:
            self._abandoned.cancel()
            await asyncio.wait({self._abandoned})

    async def _open(self) -> Any:
        connection = self._connect()
        try:
            async with asyncio.timeout(_LONGEST):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _abandon(self, opening: asyncio.Task[Any]) -> None:
        opening.add_done_callback(self._done)
        if self._abandoned is None:
            self._abandoned = opening
        else:
            opening.cancel()

    def _done(self, opening: asyncio.Task[Any]) -> None:
        if self._abandoned is opening:
            self._abandoned = None
        # Nobody waits for an error here; the next call gets its own.
        if not opening.cancelled() and opening.exception() is None:
            self._late(opening.result())
