"""A store that fails on request, in each of the ways a real one can."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Literal, TypeAlias, TypeVar

from idempotency._backends.base import running
from idempotency._core.errors import StoreUnavailable
from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.store import Store, SyncStore

__all__ = ["Fault", "FaultyStore", "SyncFaultyStore"]

T = TypeVar("T")
Method: TypeAlias = Literal["acquire", "renew", "complete", "release", "get"]

_TICK = 0.002  # s between looks at whether a hung call may go on


class Fault(Enum):
    """What may happen to one call; a float instead delays it by so many seconds."""

    FAIL_BEFORE = "fail before"
    """`StoreUnavailable`, and nothing has happened."""

    FAIL_AFTER = "fail after"
    """`StoreUnavailable`, though the call took effect: its reply was lost."""

    DROP = "drop"
    """The call takes effect and is answered; then the record is lost, as by eviction or failover (needs `forget`)."""

    HANG = "hang"
    """Nothing happens until `resume`; then the call takes effect, however late."""


class _Plan:
    """Which fault befalls which call, and which calls were made."""

    def __init__(self) -> None:
        self.calls: list[tuple[Method, StorageKey]] = []
        self._faults: dict[str, Iterator[Fault | float | None]] = {}
        self._hung = True

    def inject(self, method: Method, faults: Iterable[Fault | float | None]) -> None:
        """
        Let the next calls of *method* meet *faults*, one each; None lets a call pass, and so does the end.

        `itertools.repeat(Fault.FAIL_BEFORE)` is a store that never works again; an empty list mends it.
        """
        self._faults[method] = iter(faults)
        self._hung = True

    def resume(self) -> None:
        """Let every hung call go on."""
        self._hung = False

    def _next(self, method: Method, key: StorageKey) -> Fault | float | None:
        self.calls.append((method, key))
        fault = next(self._faults.get(method, iter(())), None)
        if fault is Fault.FAIL_BEFORE:
            raise StoreUnavailable(f"injected: {method} was not sent")
        return fault


class FaultyStore(_Plan):
    """
    A `Store` around another, whose calls fail as they are told.

    Attributes:
        calls: Every call made, as its method's name and its key, the failed ones included.

    Under asyncio or trio. What is not part of `Store` is passed through to the store inside.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

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

        async def send() -> Reply:
            return await self._store.acquire(
                key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
            )

        return await self._call("acquire", key, send)

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return await self._call("renew", claim.key, lambda: self._store.renew(claim, lease=lease))

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`."""
        return await self._call(
            "complete", claim.key, lambda: self._store.complete(claim, outcome, retention=retention)
        )

    async def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return await self._call("release", claim.key, lambda: self._store.release(claim))

    async def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return await self._call("get", key, lambda: self._store.get(key))

    async def aclose(self) -> None:
        """Let hung calls go on and close the store inside."""
        self.resume()
        await self._store.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _call(self, method: Method, key: StorageKey, send: Callable[[], Awaitable[T]]) -> T:
        fault = self._next(method, key)
        if isinstance(fault, float):
            await running().sleep(fault)
        while fault is Fault.HANG and self._hung:
            await running().sleep(_TICK)
        result = await send()
        if fault is Fault.DROP:
            await self.forget(key)
        if fault is Fault.FAIL_AFTER:
            raise StoreUnavailable(f"injected: the reply to {method} was lost")
        return result


class SyncFaultyStore(_Plan):
    """`FaultyStore` for callers without an event loop."""

    def __init__(self, store: SyncStore) -> None:
        super().__init__()
        self._store = store

    def acquire(
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

        def send() -> Reply:
            return self._store.acquire(
                key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
            )

        return self._call("acquire", key, send)

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return self._call("renew", claim.key, lambda: self._store.renew(claim, lease=lease))

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`."""
        return self._call(
            "complete", claim.key, lambda: self._store.complete(claim, outcome, retention=retention)
        )

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return self._call("release", claim.key, lambda: self._store.release(claim))

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return self._call("get", key, lambda: self._store.get(key))

    def close(self) -> None:
        """Let hung calls go on and close the store inside."""
        self.resume()
        self._store.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _call(self, method: Method, key: StorageKey, send: Callable[[], T]) -> T:
        fault = self._next(method, key)
        if isinstance(fault, float):
            time.sleep(fault)
        while fault is Fault.HANG and self._hung:
            time.sleep(_TICK)
        result = send()
        if fault is Fault.DROP:
            self.forget(key)
        if fault is Fault.FAIL_AFTER:
            raise StoreUnavailable(f"injected: the reply to {method} was lost")
        return result
