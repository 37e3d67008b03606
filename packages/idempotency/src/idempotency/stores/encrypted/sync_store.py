# Generated from async_store.py by scripts/unasync: edit that file, not this one.
"""`SyncEncryptedStore`: wraps any `SyncStore` and seals every outcome before it leaves the process."""

from __future__ import annotations

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.store import SyncStore
from idempotency.stores.encrypted.sealing import KeyRing, SealingStore, fingerprint_of

__all__ = ["SyncEncryptedStore"]


class SyncEncryptedStore(SealingStore):
    """
    A `SyncStore` that seals every outcome before *store* sees it, and keeps all promises of *store*.

    It has `wait`, `purge`, `scan`, `forget` and `complete_in` if *store* has them. The outcomes of a scan stay sealed,
    so that an operator can list records without having their keys.

    Args:
        store: Where the records are kept.
        keys: The keys that seal and open outcomes.
        accept_plain: Also read outcomes that are not sealed, while records from before the encryption remain. Anyone
            who can write to the store can then forge an outcome.
    Raises:
        TypeError: *keys* is not a `KeyRing`.

    Cost: the same number of calls of *store*; only the completion of a claim that another process acquired reads the
    record first. A sealed outcome has 4/3 of its size plus about 110 bytes.
    """

    def __init__(self, store: SyncStore, keys: KeyRing, *, accept_plain: bool = False) -> None:
        self._store = store
        self._set_up(store, keys, accept_plain)

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
        """See `Store.acquire`; it may also raise the errors of `KeyRing.unseal`."""
        reply = self._store.acquire(
            key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
        )
        return self._reply(key, fingerprint, reply)

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return self._store.renew(claim, lease=lease)

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`."""
        fingerprint = fingerprint_of(claim)
        if fingerprint is None:
            record = self._store.get(claim.key)
            if record is None or record.owner != claim.owner:
                return False
            fingerprint = record.fingerprint
        sealed = self._keys.seal(outcome, key=claim.key, fingerprint=fingerprint)
        return self._store.complete(claim, sealed, retention=retention)

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return self._store.release(claim)

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`; it may also raise the errors of `KeyRing.unseal`."""
        return self._record(self._store.get(key))

    def close(self) -> None:
        """Close the inner store."""
        self._store.close()
