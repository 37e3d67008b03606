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
    "forgotten",
    "forgotten_sync",
    "lapsed",
    "lapsed_sync",
    "patient",
    "patient_by_default",
    "repeated",
    "repeated_sync",
    "until",
    "until_sync",
]

PATIENCE = 30.0
"""Seconds: a bound for a busy machine, never the expected time. A store's own default is one second."""

T = TypeVar("T")


def patient(url: str) -> str:
    """*url* of a store, with a deadline that a busy machine does not reach."""
    return f"{url}{'&' if '?' in url else '?'}deadline={PATIENCE:g}"


def patient_by_default(patch: pytest.MonkeyPatch, *stores: type) -> None:
    """Give *stores* that deadline where a program that is tested as it is written names none."""
    for store in stores:
        patch.setitem(store.__init__.__kwdefaults__, "deadline", PATIENCE)  # type: ignore[misc]


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


async def until(holds: Callable[[], object], *, patience: float = PATIENCE) -> None:
    """
    Wait, under asyncio or trio, until *holds* returns something true; for what gives no sign of its own.

    A coroutine function may be given: its answer counts.
    """
    end = time.monotonic() + patience
    while True:
        answer = holds()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < end, f"waited {patience:g} s in vain"
        await anyio.sleep(0.005)  # between two questions


def until_sync(holds: Callable[[], object], what: str = "", *, patience: float = PATIENCE) -> None:
    """The same without an event loop; *what* is said of it after *patience* seconds in vain."""
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, f"waited {patience:g} s in vain: {what}"
        time.sleep(0.005)  # between two questions


async def lapsed(store: Store, *keys: StorageKey) -> None:
    """Wait until *store* says, by its own clock, that the lease on each of *keys* is over."""
    for key in keys:
        await until(partial(_is_lapsed, store, key))


def lapsed_sync(store: SyncStore, *keys: StorageKey) -> None:
    """The same without an event loop."""
    for key in keys:
        until_sync(partial(_is_lapsed_sync, store, key))


async def forgotten(store: Store, *keys: StorageKey) -> None:
    """Wait until *store* says, by its own clock, that it remembers none of *keys*."""
    for key in keys:
        await until(partial(_is_forgotten, store, key))


def forgotten_sync(store: SyncStore, *keys: StorageKey) -> None:
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
