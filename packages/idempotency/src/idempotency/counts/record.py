"""
Encodes counts as completed records, several for each minute, under names that no client's key can have.

The records of minute M are `=counts:M.0`, `=counts:M.1` and so on, without a gap: a process that adds counts claims the
first free name. So a record is written once and never changed, and every store can keep such records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from idempotency._core.errors import StoreError
from idempotency._core.outcome import Value, decode, encode_value
from idempotency._core.types import Fingerprint, StorageKey
from idempotency.counts.minutes import SERIES, Series

__all__ = ["FINGERPRINT", "count_key", "encode_counts", "is_count", "read_counts"]

_PREFIX: Final = "=counts:"  # `storage_key` writes an equals sign only after "sha256"
FINGERPRINT: Final = Fingerprint(b"counts")


def count_key(minute: int, place: int) -> StorageKey:
    """The name of record number *place*, from 0 on, of *minute*, in minutes since 1970."""
    return StorageKey(f"{_PREFIX}{minute}.{place}")


def is_count(key: StorageKey) -> bool:
    """
    Whether the record with this name holds counts, not a client's operation.

    >>> from idempotency import storage_key
    >>> is_count(count_key(29_384_512, 0)), is_count(storage_key("=counts", "29384512.0"))
    (True, False)
    """
    return key.startswith(_PREFIX)


def encode_counts(counts: Mapping[Series, int]) -> bytes:
    """*counts* as an outcome."""
    return encode_value(dict(counts))


def read_counts(outcome: bytes | None) -> Counter[Series]:
    """The counts in *outcome*; none if it has another form, or is missing because its writer died."""
    try:
        decoded = None if outcome is None else decode(outcome)
    except StoreError:
        return Counter()
    if not isinstance(decoded, Value) or not isinstance(decoded.value, dict):
        return Counter()
    found = ((series, decoded.value.get(series)) for series in SERIES)
    return Counter({series: count for series, count in found if type(count) is int and count > 0})
