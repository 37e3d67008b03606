"""
The store protocol: the calls that an engine makes to a store, and the rules that the store follows.

A store sees bytes: it knows no HTTP and does not decide about mismatches. Every duration is in seconds and measured by
the store's own clock (R6); no point in time crosses this boundary. `docs/store-contract.md` states the rules R1 to R9
in full, and `idempotency.testing.StoreContract` tests them.
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

    Any method may raise `StoreUnavailable`: there was no answer, so the call may or may not have taken effect. It is
    safe to repeat any call with the same arguments (R8).
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
        Claim *key*, or get the record that holds it, in one atomic step (R1).

        Args:
            owner: 16 fresh random bytes; a repeated call with the same owner gets the same claim (R2).
            lease: Seconds until the claim lapses unless it is renewed.
            retention: Seconds that a running record is kept after its lease has lapsed (R7).
            takeover: Whether this owner may take over a claim whose lease has lapsed.
        Returns:
            `Acquired` if the record is absent or expired (attempt 1), is this owner's, or has lapsed with the same
            fingerprint and *takeover* is True (attempt + 1). `Running` if the lease is not over, or has lapsed with
            another fingerprint or with *takeover* False (then `lease_left` is 0). `Completed` if the outcome is
            recorded; reading it never extends its retention (R7).
        Raises:
            StoreUnavailable: No answer; ask again with the same *owner*.
            UnknownRecordVersion: Written by a newer version of this library; the record is not changed.
            CorruptRecord: Unreadable; the record is not changed.
        """
        ...

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """
        Make the lease last at least *lease* seconds from now; this never shortens it (R4).

        Returns:
            False if the claim was taken over, completed, released or forgotten: then stop renewing.
        """
        ...

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """
        Record the outcome and keep it for *retention* seconds from now (R3, R7).

        Args:
            outcome: One UTF-8 JSON object, not empty; stored and returned byte for byte.
        Returns:
            True if the owner still holds the key, even after its lease has lapsed, if nobody took over. A repeated
            call returns True, and the first outcome stays. False otherwise; then nothing is changed.
        """
        ...

    async def release(self, claim: Claim) -> bool:
        """
        Remove a running claim, never a completed record (R5).

        Only the owner is compared, so that a claim whose grant was never confirmed can be released with fence 0.

        Returns:
            True if this call removed the record; False if this owner held no running record.
        """
        ...

    async def get(self, key: StorageKey) -> Record | None:
        """The current record, or None if it is absent or expired. For people, tests and rule E8 only."""
        ...

    async def aclose(self) -> None:
        """Close what the store itself opened; a client that the caller passed in stays open."""
        ...


class SyncStore(Protocol):
    """`Store` for callers without an event loop: the same names, rules and errors, without `await`."""

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
        """Return when *key* may have changed, or after *timeout* seconds. Only a hint: it may come early or be lost."""
        ...


@runtime_checkable
class Purgeable(Protocol):
    """A store whose expired records take space until they are purged."""

    async def purge(self, *, limit: int = 1_000) -> int:
        """Delete at most *limit* expired records and return their number; many processes may purge at once."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a scan; *cursor* leads to the next page, None after the last."""

    records: tuple[Record, ...]
    cursor: str | None


@runtime_checkable
class Inspectable(Protocol):
    """A store whose records an operator can list and delete."""

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """About *limit* live records from *cursor* on; records that change during a scan may be missed or repeated."""
        ...

    async def forget(self, key: StorageKey) -> bool:
        """Delete the record of *key* in any state; False if there was none. The fence still rises afterwards (R9)."""
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
    """A store of this library: it can also list its records and create its table."""

    async def create_schema(self) -> None:
        """
        Create the table for the records if it is missing; does nothing for a store without tables.

        It is safe to call this again, and from many processes.

        Raises:
            StoreUnavailable: No answer, or no permission to create the table.
        """
        ...


class SyncManagedStore(SyncStore, SyncInspectable, Protocol):
    """`ManagedStore` for callers without an event loop."""

    def create_schema(self) -> None:
        """See `ManagedStore.create_schema`."""
        ...
