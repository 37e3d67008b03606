"""Makes a `Store` from any `SyncStore`, for drivers without async support: each call runs in a worker thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._runtime.threads import Threads
from idempotency.store import SyncStore

__all__ = ["ThreadedStore"]

T = TypeVar("T")

# Methods that only some stores have (Purgeable, Inspectable, ManagedStore).
_IN_A_THREAD: Final = ("purge", "scan", "forget", "create_schema")


class ThreadedStore:
    """
    Makes a blocking store usable in an event loop, asyncio or trio.

    Args:
        store: A store that several threads may call. It belongs to this one from now on: `aclose` closes it.
        max_threads: The number of calls that may run at once; further calls wait.

    Rules and errors are those of *store*. It has `purge`, `scan`, `forget` and `create_schema` if *store* has them;
    await them. `complete_in` is a plain function: call it where the transaction runs. A call whose caller is cancelled
    still runs to its end. Cost: the store's own, plus a switch to a thread and back, some tens of microseconds.
    """

    def __init__(self, store: SyncStore, *, max_threads: int = 8) -> None:
        if max_threads < 1:
            raise ValueError(f"max_threads must be at least 1, not {max_threads}")
        self._store = store
        self._threads = Threads(max_threads, "idempotency-store")
        # On the instance, so that this store is Inspectable only if the inner one is.
        for name in _IN_A_THREAD:
            if hasattr(store, name):
                setattr(self, name, partial(self._call, getattr(store, name)))
        if hasattr(store, "complete_in"):
            # Called in the caller's thread, where the transaction runs; not awaited.
            self.complete_in: Callable[..., bool] = store.complete_in

    async def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool = True,
    ) -> Reply:
        """See `Store.acquire`."""
        call: Callable[[], Reply] = lambda: self._store.acquire(  # noqa: E731 - mypy cannot join the replies otherwise
            key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
        )
        return await self._threads.run(call)

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return await self._threads.run(lambda: self._store.renew(claim, lease=lease))

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`."""
        return await self._threads.run(lambda: self._store.complete(claim, outcome, retention=retention))

    async def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return await self._threads.run(lambda: self._store.release(claim))

    async def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return await self._threads.run(lambda: self._store.get(key))

    async def _call(self, method: Callable[..., T], *args: Any, **options: Any) -> T:
        return await self._threads.run(lambda: method(*args, **options))

    async def aclose(self) -> None:
        """Close the store and let the threads end."""
        await self._threads.run(self._store.close)
        self._threads.close()
