"""
Defines the values that all layers share: storage keys, owners, claims, and the replies of a store.

Values made for every request are named tuples: they are immutable like frozen dataclasses, but built in half the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple, NewType, TypeAlias

__all__ = [
    "Acquired",
    "Claim",
    "Completed",
    "Fingerprint",
    "Owner",
    "Record",
    "Reply",
    "Running",
    "State",
    "StorageKey",
    "key_id",
]

StorageKey = NewType("StorageKey", str)
"""A record's name in a store, made by `storage_key(tenant, key)`: ASCII, escaped, never a client's raw text."""

Fingerprint = NewType("Fingerprint", bytes)
"""A digest of the request; two requests under one key are the same operation if and only if their digests are equal."""

Owner = NewType("Owner", bytes)
"""16 random bytes drawn for each acquire; a store accepts a write only from the owner that holds the claim."""


class Claim(NamedTuple):
    """
    The right to run one operation and to record its outcome; a store takes it with every write.

    Attributes:
        attempt: 1 for the first run of a record, one more for each takeover.
        fence: A fencing token: it strictly increases with every claim of a key (R9). A resource that refuses smaller
            numbers refuses the late writes of a stalled owner.
    """

    key: StorageKey
    owner: Owner
    attempt: int
    fence: int


class Acquired(NamedTuple):
    """The key was free, abandoned or already this owner's: the holder of *claim* may run the operation."""

    claim: Claim


class Running(NamedTuple):
    """
    Another owner holds the key.

    Attributes:
        fingerprint: The fingerprint of the request that holds it.
        lease_left: Seconds by the store's clock; 0 if the lease has lapsed but this request may not take over.
    """

    fingerprint: Fingerprint
    lease_left: float


class Completed(NamedTuple):
    """
    The operation is done.

    Attributes:
        outcome: The bytes that `complete` was given.
        age: Seconds since completion, by the store's clock.
        expires_in: Seconds until the record is forgotten, by the store's clock.
    """

    fingerprint: Fingerprint
    outcome: bytes
    age: float
    expires_in: float


Reply: TypeAlias = Acquired | Running | Completed
"""What `acquire` may answer."""


class State(StrEnum):
    """The state of a record; an absent record has none."""

    RUNNING = "running"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """
    A record as it is now, for people and tests, and for a run that lost its claim (E8). Make no other decision from it:
    it may be out of date.

    Attributes:
        owner: The token of the claim that wrote it.
        outcome: None while the operation runs.
        lease_left: Seconds, negative once the lease has lapsed; 0.0 for a completed record.
        age: Seconds since completion; of a running record, since the claim or the last takeover. For display only: 0.0
            if the store does not keep it, and wrong if the store's clock was set.
        expires_in: Seconds until the store forgets the record.
    """

    key: StorageKey
    state: State
    fingerprint: Fingerprint
    owner: Owner
    attempt: int
    fence: int
    outcome: bytes | None
    lease_left: float
    age: float
    expires_in: float


def key_id(key: StorageKey) -> str:
    """
    The 12 hex digits that stand for *key* in logs, events and errors: 48 bits of its SHA-256.

    >>> key_id(StorageKey("order-1"))
    '0bafe22156d2'
    """
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:12]
