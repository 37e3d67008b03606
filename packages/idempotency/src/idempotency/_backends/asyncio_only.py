"""For stores whose driver speaks asyncio alone: say so before the driver fails in a stranger way."""

from __future__ import annotations

import asyncio

__all__ = ["asyncio_loop"]


def asyncio_loop(store: object) -> asyncio.AbstractEventLoop:
    """
    The running loop of asyncio.

    Raises:
        RuntimeError: There is none, as under trio; the message names the store and the way out.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        name = type(store).__name__
        raise RuntimeError(
            f"{name} needs a running asyncio loop; under trio use MemoryStore, SQLiteStore, or "
            f"ThreadedStore(Sync{name}(...))"
        ) from None
