"""
Wraps a transport so that everything written in one iteration of the event loop is sent in one write.

uvicorn writes the headers and the body of an answer separately: two system calls, two packets, and a client that wakes
up twice. That is a large part of the cost of a short answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["OneWrite"]

_AT_MOST = 65_536  # bytes to collect; more is written at once, so that the transport can slow the writer down


class OneWrite:
    """
    The *transport* for uvicorn: collects what is written until `flush`, the loop's next iteration, or 64 KiB.

    Args:
        leave: Called by `close`, to end the connection in the owner's way.
    Attributes:
        left: Set by the owner: whether nothing more can be sent, although *transport* may still be open.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, leave: Callable[[], None]
    ) -> None:
        self._transport, self._loop, self._leave, self.left = transport, loop, leave, False
        self._written: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self.left or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send *data* soon, after earlier data."""
        if not self._written:
            self._loop.call_soon(self.flush)
        self._written.append(data)
        self._size += len(data)
        if self._size > _AT_MOST:
            self.flush()

    def flush(self) -> None:
        """Send the collected data now, unless the connection was lost."""
        if self._written:
            written, self._written, self._size = self._written, [], 0
            if not self._transport.is_closing():
                self._transport.write(b"".join(written))

    def close(self) -> None:
        """End the connection in the owner's way."""
        self._leave()

    def lost(self) -> None:
        """There is nothing to close any more; the connection is freed at once, since nothing here refers to it."""
        self._leave = lambda: None
