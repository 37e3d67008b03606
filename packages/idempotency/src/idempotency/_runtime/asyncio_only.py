"""Errors for stores whose driver runs only on asyncio: called under trio, or in another event loop than their own."""

from __future__ import annotations

import asyncio

__all__ = ["asyncio_loop", "other_loop"]


def asyncio_loop(store: object) -> asyncio.AbstractEventLoop:
    """
    The running asyncio loop.

    Raises:
        RuntimeError: There is none, for example under trio; the message names stores that work there.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        name = type(store).__name__
        raise RuntimeError(
            f"{name} needs a running asyncio loop; under trio use MemoryStore, SQLiteStore, or "
            f"ThreadedStore(Sync{name}(...))"
        ) from None


def other_loop(store: object, what: str) -> str:
    """
    The error message for a call of *store* outside the event loop that it is bound to.

    Args:
        what: What each loop needs of its own, such as "client and one store"; it follows the word "one".
    """
    name = type(store).__name__
    return (
        f"this {name} is bound to another event loop: make one {what} for each loop, inside it. If each call has its "
        f"own asyncio.run, or a test client opens a loop for each request, use ThreadedStore(Sync{name}(...)), which "
        "belongs to no loop, or keep one loop (asyncio.Runner, `with TestClient(app)`)"
    )
