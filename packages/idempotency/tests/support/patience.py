"""The time limit for waits in tests that are not about time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio
import pytest

from idempotency import Record, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.store import Store, SyncStore

__all__ = [
    "PATIENCE",
    "until_forgotten",
    "until_forgotten_sync",
    "until_lapsed",
    "until_lapsed_sync",
    "with_long_deadline",
    "set_long_default_deadline",
    "retry_unavailable",
    "retry_unavailable_sync",
    "until",
    "until_sync",
]

PATIENCE = 30.0
"""Seconds: a bound for a busy machine, never the expected time. A store's own default is one second."""

T = TypeVar("T")


def with_long_deadline(url: str) -> str:
    """*url* of a store, with a deadline that a busy machine does not reach."""
    return f"{url}{'&' if '?' in url else '?'}deadline={PATIENCE:g}"


def set_long_default_deadline(patch: pytest.MonkeyPatch, *stores: type) -> None:
    """Make that deadline the default of *stores*, for programs that are tested unchanged and name none."""
    for store in stores:
        patch.setitem(store.__init__.__kwdefaults__, "deadline", PATIENCE)  # type: ignore[misc]


async def retry_unavailable(call: Callable[[], Awaitable[T]]) -> T:
    """The result of *call*, repeated while its store is unavailable: a busy machine may exceed its short deadline."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await call()
        except StoreUnavailable:
            if time.monotonic() > end:
                raise


def retry_unavailable_sync(call: Callable[[], T]) -> T:
    """The same without an event loop."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > end:
                raise


async def until(holds: Callable[[], object], *, patience: float = PATIENCE) -> None:
    """
    Wait, under asyncio or trio, until *holds* returns something true; it is polled.

    *holds* may be a coroutine function.
    """
    end = time.monotonic() + patience
    while True:
        answer = holds()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < end, f"still false after {patience:g} s"
        await anyio.sleep(0.005)  # between two polls


def until_sync(holds: Callable[[], object], what: str = "", *, patience: float = PATIENCE) -> None:
    """The same without an event loop; *what* describes the condition in the error."""
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, f"still false after {patience:g} s: {what}"
        time.sleep(0.005)  # between two polls


async def until_lapsed(store: Store, *keys: StorageKey) -> None:
    """Wait until the lease on each of *keys* has ended, by the clock of *store*."""
    for key in keys:
        await until(partial(_is_lapsed, store, key))


def until_lapsed_sync(store: SyncStore, *keys: StorageKey) -> None:
    """The same without an event loop."""
    for key in keys:
        until_sync(partial(_is_lapsed_sync, store, key))


async def until_forgotten(store: Store, *keys: StorageKey) -> None:
    """Wait until *store*, by its own clock, has no record of any of *keys*."""
    for key in keys:
        await until(partial(_is_forgotten, store, key))


def until_forgotten_sync(store: SyncStore, *keys: StorageKey) -> None:
    """The same without an event loop."""
    for key in keys:
        until_sync(partial(_is_forgotten_sync, store, key))


async def _is_lapsed(store: Store, key: StorageKey) -> bool:
    return _has_no_lease(await store.get(key))


def _is_lapsed_sync(store: SyncStore, key: StorageKey) -> bool:
    return _has_no_lease(store.get(key))


def _has_no_lease(record: Record | None) -> bool:
    return record is None or (record.outcome is None and record.lease_left <= 0)


async def _is_forgotten(store: Store, key: StorageKey) -> bool:
    return await store.get(key) is None


def _is_forgotten_sync(store: SyncStore, key: StorageKey) -> bool:
    return store.get(key) is None
