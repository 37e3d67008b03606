# Generated from _faulty_store.py by scripts/unasync: edit that file, not this one.
"""`SyncFaultyStore`: a store that fails on request, in every way that a real store can."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from idempotency._core.errors import StoreUnavailable
from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.store import SyncStore
from idempotency.testing._faults import TICK, Fault, FaultPlan, Method

__all__ = ["SyncFaultyStore"]

T = TypeVar("T")


class SyncFaultyStore(FaultPlan):
    """
    A `SyncStore` around another store; its calls fail as planned by `inject`.

    Attributes:
        calls: All calls, also failed ones: the method's name and the key.

    Methods that are not part of `SyncStore` are passed to the inner store.
    """

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
        """Let hung calls go on, and close the inner store."""
        self.resume()
        self._store.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _call(self, method: Method, key: StorageKey, send: Callable[[], T]) -> T:
        fault = self._next(method, key)
        if isinstance(fault, float):
            time.sleep(fault)
        while fault is Fault.HANG and self._hung:
            time.sleep(TICK)
        result = send()
        if fault is Fault.DROP:
            self.forget(key)
        if fault is Fault.FAIL_AFTER:
            raise StoreUnavailable(f"injected: the reply to {method} was lost")
        return result
