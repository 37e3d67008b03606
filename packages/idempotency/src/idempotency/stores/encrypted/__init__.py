"""
Encryption at rest for any store: every outcome is encrypted ("sealed") before it leaves the process.

An outcome contains a response with its body for the whole retention. `docs/encryption.md` says what stays visible of a
sealed record (its name, state, times, sizes and fingerprint), and how many records one key may seal.
"""

from __future__ import annotations

from idempotency.stores.encrypted.async_store import EncryptedStore
from idempotency.stores.encrypted.sealing import KeyRing, MissingSealingKey
from idempotency.stores.encrypted.sync_store import SyncEncryptedStore

__all__ = ["EncryptedStore", "KeyRing", "MissingSealingKey", "SyncEncryptedStore"]
