"""
The store protocol: what the engine asks of a place that keeps records, and the rules each answer obeys.

A store sees bytes: no HTTP, no verdict on a mismatch. Every duration is in seconds and judged by the store's own
clock (R6); no instant crosses this boundary. `docs/store-contract.md` states the rules R1 to R9 in full and
`idempotency.testing.StoreContract` tests them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey

__all__ = [
    "Inspectable",
    "ManagedStore",
    "Page",
    "Purgeable",
    "Store",
    "SyncInspectable",
    "SyncManagedStore",
    "SyncPurgeable",
    "SyncStore",
    "Waitable",
]


class Store(Protocol):
    """
    Keeps records, for callers with an event loop.

    Any method may raise `StoreUnavailable`: there was no answer, so the call may or may not have taken effect. Every
    call is safe to repeat with the same arguments (R8).
    """

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
        """
        Claim *key*, or learn who holds it, in one atomic step (R1).

        Args:
            owner: 16 fresh random bytes; the same owner asking again gets the same claim back (R2).
            lease: Seconds the claim is held unless renewed.
            retention: Seconds a running record is remembered after its lease lapses (R7).
            takeover: Whether a claim whose lease lapsed may pass to this owner.
        Returns:
            `Acquired` for an absent or expired record (attempt 1), for our own, and for a lapsed one with the same
            fingerprint where *takeover* allows (attempt + 1). `Running` for a record under lease, or lapsed with
            another fingerprint or without *takeover* (`lease_left=0`). `Completed` for a finished one; a replay
            never extends its life (R7).
        Raises:
            StoreUnavailable: No answer; ask again with the same *owner*.
            UnknownRecordVersion: Written by a library version this one cannot read; left untouched.
            CorruptRecord: Unreadable; left untouched.
        """
        ...

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """
        Let the lease end at least *lease* seconds from now; never shortens it (R4).

        Returns:
            False if the claim was taken over, completed, released or forgotten: stop renewing.
        """
        ...

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """
        Record the outcome, to be kept for *retention* seconds from now (R3, R7).

        Args:
            outcome: One UTF-8 JSON object, not empty; stored and returned byte for byte.
        Returns:
            True if the owner still holds the key, also after its lease lapsed if nobody took over. A repeated call
            returns True, and the first outcome stays. False otherwise; nothing is changed.
        """
        ...

    async def release(self, claim: Claim) -> bool:
        """
        Remove a running claim, never a completed record (R5).

        Only the owner is compared, so that a claim whose grant was never confirmed can be released with fence 0.

        Returns:
            True if this call removed the record; False where there was nothing of this owner's to remove.
        """
        ...

    async def get(self, key: StorageKey) -> Record | None:
        """The record as it stands, or None if it is absent or expired. For people, tests and rule E8 only."""
        ...

    async def aclose(self) -> None:
        """Release what the store opened itself; a client passed in by the caller stays open."""
        ...


class SyncStore(Protocol):
    """`Store` for callers without an event loop: the same names, rules and errors, no `await`."""

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
        ...

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        ...

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`."""
        ...

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        ...

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        ...

    def close(self) -> None:
        """See `Store.aclose`."""
        ...


@runtime_checkable
class Waitable(Protocol):
    """A store that can hint that a record changed."""

    async def wait(self, key: StorageKey, *, timeout: float) -> None:
        """Return when *key* may have changed, or after *timeout* seconds. A hint: it may be early, or be lost."""
        ...


@runtime_checkable
class Purgeable(Protocol):
    """A store whose expired records take space until somebody deletes them."""

    async def purge(self, *, limit: int = 1_000) -> int:
        """Delete at most *limit* expired records and return how many; safe from many processes at once."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a scan: *cursor* continues it, None ends it."""

    records: tuple[Record, ...]
    cursor: str | None


@runtime_checkable
class Inspectable(Protocol):
    """A store that an operator can list and correct."""

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """About *limit* live records from *cursor* on; what comes or goes during a scan may be missed or repeated."""
        ...

    async def forget(self, key: StorageKey) -> bool:
        """Delete the record of *key*, whatever its state, and say whether there was one. The fence still rises (R9)."""
        ...


@runtime_checkable
class SyncPurgeable(Protocol):
    """See `Purgeable`."""

    def purge(self, *, limit: int = 1_000) -> int:
        """See `Purgeable.purge`."""
        ...


@runtime_checkable
class SyncInspectable(Protocol):
    """See `Inspectable`."""

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`."""
        ...

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        ...


class ManagedStore(Store, Inspectable, Protocol):
    """A store of this library's: it can also be listed, and can create what it needs."""

    async def create_schema(self) -> None:
        """
        Create the table that the records need where it is missing; nothing to do for a store without one.

        Raises:
            StoreUnavailable: No answer, or no right to create it; safe to call again, and from many processes.
        """
        ...


class SyncManagedStore(SyncStore, SyncInspectable, Protocol):
    """`ManagedStore` for callers without an event loop."""

    def create_schema(self) -> None:
        """See `ManagedStore.create_schema`."""
        ...
