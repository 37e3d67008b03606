"""
Wraps a transport so that everything written in one turn of the event loop is sent in one write.

uvicorn writes the head of an answer and its body apart: two system calls, two packets, and a client that is woken
twice. That is a good part of what a short answer costs.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["OneWrite"]

_AT_MOST = 65_536  # bytes held; with more, the transport itself must see it and slow the writer down


class OneWrite:
    """
    *transport*, but that `write` waits for the end of the turn, or for 64 KiB.

    Whatever closes the connection in an orderly way sends what was written before.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._written: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send *data* soon, behind what was written before."""
        if not self._written:
            self._loop.call_soon(self.flush)
        self._written.append(data)
        self._size += len(data)
        if self._size > _AT_MOST:
            self.flush()

    def flush(self) -> None:
        """Send what was written, unless the connection was lost meanwhile."""
        if self._written:
            written, self._written, self._size = self._written, [], 0
            if not self._transport.is_closing():
                self._transport.write(b"".join(written))

    def close(self) -> None:
        """Send what was written, then close."""
        self.flush()
        self._transport.close()
