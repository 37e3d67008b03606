"""
Opening connections: what is not open when its caller has to answer goes on behind it, for a later call.

Without that, a server whose name takes longer to look up than a call may take would never be reached again: each call
would start the lookup anew and leave it unfinished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Openings"]

# s: a resolver's default patience, three servers asked twice for 5 s; a new try is better then.
_LONGEST = 30.0


class Openings:
    """
    Opens connections to one place, at most one of them behind its caller.

    Args:
        connect: Makes a connection that is not open yet.
        late: Given each connection that came too late for its caller.
    """

    def __init__(self, connect: Callable[[], Any], late: Callable[[Any], None]) -> None:
        self._connect, self._late = connect, late
        self._left: asyncio.Task[Any] | None = None

    async def open(self) -> Any:
        """A connection that is open. Cancelled, it goes on without its caller, unless another one does already."""
        opening = asyncio.create_task(self._open())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._leave(opening)
            raise

    async def aclose(self) -> None:
        """Give up what goes on behind its caller."""
        if self._left is not None:
            self._left.cancel()
            await asyncio.wait({self._left})

    async def _open(self) -> Any:
        connection = self._connect()
        try:
            async with asyncio.timeout(_LONGEST):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _leave(self, opening: asyncio.Task[Any]) -> None:
        opening.add_done_callback(self._done)
        if self._left is None:
            self._left = opening
        else:
            opening.cancel()

    def _done(self, opening: asyncio.Task[Any]) -> None:
        if self._left is opening:
            self._left = None
        # A failure has nobody to be told to: the next call meets it itself.
        if not opening.cancelled() and opening.exception() is None:
            self._late(opening.result())
