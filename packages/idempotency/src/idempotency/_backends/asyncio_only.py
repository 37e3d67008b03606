"""Refuses a trio event loop for stores whose driver runs on asyncio only, with an error that says so."""

from __future__ import annotations

import asyncio

__all__ = ["asyncio_loop", "other_loop"]


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


def other_loop(store: object, what: str) -> str:
    """
    The error for a call of *store* in another event loop than the one it is bound to.

    Args:
        what: What each loop needs one of, such as "client and one store".
    """
    name = type(store).__name__
    return (
        f"this {name} is bound to another event loop: make one {what} for each loop, inside it. Where every call is an "
        f"asyncio.run of its own, or a test client opens a loop for each request, use ThreadedStore(Sync{name}(...)), "
        "which belongs to no loop, or keep one loop (asyncio.Runner, `with TestClient(app)`)"
    )
