"""Short calls of a blocking store, with defaults for everything that a test does not care about."""

from __future__ import annotations

import secrets

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, Running, StorageKey, SyncStore

__all__ = ["FINGERPRINT", "KEY", "acquire", "claim"]

KEY = StorageKey("order-1")
FINGERPRINT = Fingerprint(b"f" * 32)


def acquire(
    store: SyncStore, key: str = KEY, *, lease: float = 30.0, retention: float = 60.0
) -> Acquired | Running | Completed:
    """Acquire as a new owner."""
    return store.acquire(
        StorageKey(key),
        fingerprint=FINGERPRINT,
        owner=Owner(secrets.token_bytes(16)),
        lease=lease,
        retention=retention,
    )


def claim(store: SyncStore, key: str = KEY, *, lease: float = 30.0, retention: float = 60.0) -> Claim:
    """Acquire a free key as a new owner."""
    reply = acquire(store, key, lease=lease, retention=retention)
    assert isinstance(reply, Acquired)
    return reply.claim
