"""`FaultyStore`: a store that fails on request, in every way that a real store can."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from idempotency._core.errors import StoreUnavailable
from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._runtime.event_loop import running
from idempotency.store import Store
from idempotency.testing._faults import TICK, Fault, FaultPlan, Method

__all__ = ["FaultyStore"]

T = TypeVar("T")


class FaultyStore(FaultPlan):
    """
    A `Store` around another store; its calls fail as planned by `inject`.

    Attributes:
        calls: All calls, also failed ones: the method's name and the key.

    Under asyncio or trio. Methods that are not part of `Store` are passed to the inner store.
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
        """Let hung calls go on, and close the inner store."""
        self.resume()
        await self._store.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _call(self, method: Method, key: StorageKey, send: Callable[[], Awaitable[T]]) -> T:
        fault = self._next(method, key)
        if isinstance(fault, float):
            await running().sleep(fault)
        while fault is Fault.HANG and self._hung:
            await running().sleep(TICK)
        result = await send()
        if fault is Fault.DROP:
            await self.forget(key)
        if fault is Fault.FAIL_AFTER:
            raise StoreUnavailable(f"injected: the reply to {method} was lost")
        return result
