"""
Seals outcomes with AES-256-GCM (NIST SP 800-38D) under the user's key, as one JSON object.

    {"format":1,"outcome":"sealed","sealed_by":"2026-11","sealed":"<base64 of nonce, ciphertext and tag>"}

The storage key, the fingerprint and the id of the sealing key are authenticated with it, so that a sealed outcome opens
only in the record that it was written for.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from struct import pack
from typing import Any, ClassVar, Final

from idempotency._core.errors import CorruptRecord, UnknownRecordVersion
from idempotency._core.types import Acquired, Claim, Completed, Fingerprint, Record, Reply, StorageKey
from idempotency._runtime.extras import missing
from idempotency.store import Store, SyncStore

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ModuleNotFoundError as _error:
    raise missing("encryption", "EncryptedStore", _error) from _error

__all__ = ["KeyRing", "MissingSealingKey", "SealingStore", "fingerprint_of"]

_FORMAT: Final = 1
_NONCE_BYTES: Final = 12  # 96 bits, drawn at random (SP 800-38D, 8.2.2)
_KEY_BYTES: Final = 32
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTEXT: Final = b"idempotency: sealed outcome, format 1"

# Methods that only some stores have (Waitable, Purgeable, Inspectable) and that need no key.
_PASSED_THROUGH: Final = ("wait", "purge", "scan", "forget", "create_schema")


class MissingSealingKey(UnknownRecordVersion):
    """The record was sealed with a key that this process does not have; the record is kept, and nothing runs."""

    slug: ClassVar[str] = "missing-sealing-key"
    title: ClassVar[str] = "The stored record is sealed with a key that is missing here"

    def __init__(self, *, sealed_by: str) -> None:
        super().__init__(f"the stored record was sealed with key {sealed_by!r}: add that key to the key ring")
        self.sealed_by = sealed_by


class KeyRing:
    """
    The keys that open records, by id, and the id of the key that seals new ones.

    To rotate: add the new key everywhere, then make it *current* everywhere, then wait for the longest retention and
    remove the old key. The `repr` shows only the ids.

    Args:
        keys: 32 random bytes for each id; an id has 1 to 64 letters, digits, dots, dashes and underscores, and is
            stored beside every record.
        current: The id of the key that seals.
    Raises:
        ValueError: A key has another length, an id is not valid, or *current* is not among the ids.

    >>> ring = KeyRing({"2026-10": bytes(32), "2026-11": bytes(range(32))}, current="2026-11")
    >>> ring
    KeyRing(ids=['2026-10', '2026-11'], current='2026-11')
    """

    def __init__(self, keys: Mapping[str, bytes], *, current: str) -> None:
        wrong = [
            f"key {name!r} has {len(key)} bytes, not 32"
            for name, key in keys.items()
            if len(key) != _KEY_BYTES
        ]
        wrong += [f"{name!r} is no key id" for name in keys if not _KEY_ID.fullmatch(name)]
        if current not in keys:
            wrong.append(f"there is no key {current!r} to be the current one")
        if wrong:
            raise ValueError("; ".join(wrong))
        self._ciphers = {name: AESGCM(key) for name, key in keys.items()}
        self.current = current

    def __repr__(self) -> str:
        """The ids, never the keys."""
        return f"KeyRing(ids={sorted(self._ciphers)!r}, current={self.current!r})"

    def seal(self, outcome: bytes, *, key: StorageKey, fingerprint: Fingerprint) -> bytes:
        """*outcome*, sealed so that it opens only for this *key* and *fingerprint*."""
        nonce = os.urandom(_NONCE_BYTES)
        bound_to = _associated_data(self.current, key, fingerprint)
        sealed = nonce + self._ciphers[self.current].encrypt(nonce, outcome, bound_to)
        return (
            f'{{"format":{_FORMAT},"outcome":"sealed","sealed_by":"{self.current}",'
            f'"sealed":"{b64encode(sealed).decode()}"}}'
        ).encode()

    def unseal(self, outcome: bytes, *, key: StorageKey, fingerprint: Fingerprint) -> bytes:
        """
        Returns the outcome that `seal` was given.

        Raises:
            MissingSealingKey: It was sealed with a key that is not on this ring.
            UnknownRecordVersion: It was sealed by a newer version of this library.
            CorruptRecord: It is not a sealed outcome, it was altered, or it belongs to another record.
        """
        try:
            members = json.loads(outcome)
            kind, version = members["outcome"], members["format"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CorruptRecord("the stored outcome was not written by this library; look at it") from None
        if kind != "sealed":
            raise CorruptRecord(
                "the stored outcome is not sealed: it was written without encryption or by another program; let it "
                "expire, or open the store with accept_plain=True while such records remain"
            )
        if version != _FORMAT:
            raise UnknownRecordVersion(
                f"the outcome was sealed in format {version!r}, this version opens {_FORMAT}; upgrade"
            )
        return self._open(members, key, fingerprint)

    def _open(self, members: dict[str, Any], key: StorageKey, fingerprint: Fingerprint) -> bytes:
        try:
            sealed_by: str = members["sealed_by"]
            sealed = b64decode(members["sealed"], validate=True)
            if not _KEY_ID.fullmatch(sealed_by):
                raise ValueError("sealed_by")
        except (ValueError, KeyError, TypeError):
            raise CorruptRecord("the sealed outcome lacks a member or has one of a wrong type") from None
        cipher = self._ciphers.get(sealed_by)
        if cipher is None:
            raise MissingSealingKey(sealed_by=sealed_by)
        try:
            bound_to = _associated_data(sealed_by, key, fingerprint)
            return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)
        except (InvalidTag, ValueError):
            raise CorruptRecord(
                "the sealed outcome does not open with its key: it was altered, or moved here from another record"
            ) from None


class SealingStore:
    """The base class of the async and the sync store: everything except the calls of the inner store."""

    _keys: KeyRing
    _accept_plain: bool

    def _set_up(self, store: Store | SyncStore, keys: KeyRing, accept_plain: bool) -> None:
        if not isinstance(keys, KeyRing):
            raise TypeError("keys must be a KeyRing")
        self._keys = keys
        self._accept_plain = accept_plain
        # On the instance, so that this store is Waitable only if the inner one is.
        for name in _PASSED_THROUGH:
            if hasattr(store, name):
                setattr(self, name, getattr(store, name))
        if hasattr(store, "complete_in"):
            self.complete_in: Callable[..., Any] = partial(self._complete_in, store.complete_in)

    def _complete_in(
        self,
        complete_in: Callable[..., Any],
        connection: Any,
        claim: Claim,
        outcome: bytes,
        *,
        retention: float,
    ) -> Any:
        fingerprint = fingerprint_of(claim)
        if fingerprint is None:  # reading it here could see another state than the caller's transaction does
            raise TypeError(
                "complete_in takes only a claim that this store granted: pass current_claim().claim"
            )
        sealed = self._keys.seal(outcome, key=claim.key, fingerprint=fingerprint)
        return complete_in(connection, claim, sealed, retention=retention)

    def _reply(self, key: StorageKey, fingerprint: Fingerprint, reply: Reply) -> Reply:
        match reply:
            case Acquired(claim):
                return Acquired(_BoundClaim.of(claim, fingerprint))
            case Completed():
                return reply._replace(outcome=self._unsealed(key, reply.fingerprint, reply.outcome))
            case _:
                return reply

    def _record(self, record: Record | None) -> Record | None:
        if record is None or record.outcome is None:
            return record
        return replace(record, outcome=self._unsealed(record.key, record.fingerprint, record.outcome))

    def _unsealed(self, key: StorageKey, fingerprint: Fingerprint, outcome: bytes) -> bytes:
        if self._accept_plain and not _is_sealed(outcome):
            return outcome
        return self._keys.unseal(outcome, key=key, fingerprint=fingerprint)


class _BoundClaim(Claim):
    """
    A claim with the fingerprint of its request, which sealing needs but `complete` does not get.

    It is equal to the original claim, and survives pickle. Without the fingerprint, `complete` needs one more read.
    """

    fingerprint: Fingerprint

    @classmethod
    def of(cls, claim: Claim, fingerprint: Fingerprint) -> _BoundClaim:
        bound = cls(*claim)
        bound.fingerprint = fingerprint
        return bound


def fingerprint_of(claim: Claim) -> Fingerprint | None:
    """The fingerprint of the request of *claim*; None if this process does not know it."""
    return getattr(claim, "fingerprint", None)


def _associated_data(key_id: str, key: StorageKey, fingerprint: Fingerprint) -> bytes:
    """Each part after its length, so that different lists of parts give different bytes."""
    parts = (_CONTEXT, key_id.encode(), key.encode(), fingerprint)
    return b"".join(pack(">I", len(part)) + part for part in parts)


def _is_sealed(outcome: bytes) -> bool:
    try:
        members = json.loads(outcome)
    except (ValueError, RecursionError):
        return False
    return isinstance(members, dict) and members.get("outcome") == "sealed"
