"""For unit tests of handlers: switches protection off, or replaces the stores by stores in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from idempotency.engine.checks import is_async_store
from idempotency.engine.overrides import overrides
from idempotency.store import Store, SyncStore
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

__all__ = ["protection_off", "swapped_stores"]


def protection_off() -> AbstractContextManager[None]:
    """
    Run every protected route and function unprotected, until the context ends.

    No key is required or read, and no store is called. This affects the whole process, every thread and event loop, so
    do not use it in production.

    >>> from idempotency import idempotent
    >>> from idempotency.stores.memory import SyncMemoryStore
    >>> runs = []
    >>> guarded = idempotent(store=SyncMemoryStore(), operation="pay", key=lambda order: order)(runs.append)
    >>> with protection_off():
    ...     guarded("o-1"), guarded("o-1")
    (None, None)
    >>> runs
    ['o-1', 'o-1']
    """
    return overrides.switched_off()


def swapped_stores(
    make: Callable[[], Store] = MemoryStore, make_sync: Callable[[], SyncStore] = SyncMemoryStore
) -> AbstractContextManager[None]:
    """
    Give every middleware and every decorated function a new store in memory, until the context ends.

    Those that share a store then share its replacement. This affects the whole process. Your own calls of
    `complete_in` still go to your own store, so test transactions with the real one.

    Args:
        make: Makes the replacement of a `Store`.
        make_sync: Makes the replacement of a `SyncStore`.
    Raises:
        RuntimeError: On entering: the stores are already swapped.

    >>> from idempotency import idempotent
    >>> store, runs = SyncMemoryStore(), []
    >>> guarded = idempotent(store=store, operation="pay", key=lambda order: order)(runs.append)
    >>> with swapped_stores():
    ...     guarded("o-1"), guarded("o-1")
    (None, None)
    >>> runs, store.scan().records
    (['o-1'], ())
    """
    # By the id of a store; each value also holds the store itself, so that its id is not reused.
    replacements: dict[int, tuple[Any, Any]] = {}

    def replace(store: Any) -> Any:
        if id(store) not in replacements:
            replacement = make() if is_async_store(store) else make_sync()
            if is_async_store(replacement) is not is_async_store(store):
                raise TypeError(
                    f"a {type(store).__name__} cannot be replaced by a {type(replacement).__name__}"
                )
            replacements[id(store)] = (store, replacement)
        return replacements[id(store)][1]

    return overrides.stores(replace)
