"""
Encryption at rest: any store, with every outcome sealed before it leaves the process.

An outcome holds a response, body included, for as long as it is retained. What stays visible of a sealed one (the
record's name, state, times, sizes and fingerprint), and how many records one key may seal, is in `docs/encryption.md`.
"""

from __future__ import annotations

from idempotency.stores.encrypted.async_store import EncryptedStore
from idempotency.stores.encrypted.sealing import KeyRing, MissingSealingKey
from idempotency.stores.encrypted.sync_store import SyncEncryptedStore

__all__ = ["EncryptedStore", "KeyRing", "MissingSealingKey", "SyncEncryptedStore"]
