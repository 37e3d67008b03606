"""How long tests wait for what they do not time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from idempotency.errors import StoreUnavailable

__all__ = ["PATIENCE", "patient", "repeated", "repeated_sync", "until", "until_sync"]

PATIENCE = 30.0
"""Seconds: a bound for a busy machine, never the expected time. A store's own default is one second."""

T = TypeVar("T")


def patient(url: str) -> str:
    """*url* of a store, with a deadline that a busy machine does not reach."""
    return f"{url}{'&' if '?' in url else '?'}deadline={PATIENCE:g}"


async def repeated(call: Callable[[], Awaitable[T]]) -> T:
    """The answer to *call*, which may be too slow for its store's short deadline: then it is repeated, as it may be."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await call()
        except StoreUnavailable:
            if time.monotonic() > end:
                raise


def repeated_sync(call: Callable[[], T]) -> T:
    """The same without an event loop."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > end:
                raise


async def until(holds: Callable[[], object]) -> None:
    """Wait, under asyncio or trio, until *holds* returns something true; for what gives no sign of its own."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE:g} s in vain"
        await anyio.sleep(0.005)


def until_sync(holds: Callable[[], object]) -> None:
    """The same without an event loop."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE:g} s in vain"
        time.sleep(0.005)
