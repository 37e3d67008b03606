"""
Opens connections, and lets one that is not open by its caller's deadline go on in the background for a later call.

Otherwise a server whose name takes longer to look up than a call may take would never be reached: each call would start
the lookup anew and give it up unfinished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Connector"]

# s: a resolver's default patience, three servers asked twice for 5 s; a new try is better then.
_LONGEST = 30.0


class Connector:
    """
    Opens connections to one address, at most one of them in the background.

    Args:
        connect: Makes a connection that is not open yet.
        late: Given each connection that came too late for its caller.
    """

    def __init__(self, connect: Callable[[], Any], late: Callable[[Any], None]) -> None:
        self._connect, self._late = connect, late
        self._left: asyncio.Task[Any] | None = None

    async def open(self) -> Any:
        """An open connection. If the caller is cancelled, it goes on in the background, unless another one does."""
        opening = asyncio.create_task(self._open())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._leave(opening)
            raise

    async def aclose(self) -> None:
        """Stop opening in the background."""
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
