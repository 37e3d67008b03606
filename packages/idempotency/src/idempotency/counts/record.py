"""
Encodes counts as completed records, several for a minute, under names that no client's key can have.

The records of minute M are `=counts:M.0`, `=counts:M.1` and so on, without a gap: who has something to add claims the
first free one. So a record is written once and never changed, as every record is, and every store can keep them.
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

_PREFIX: Final = "=counts:"  # `storage_key` writes an equals sign behind "sha256" alone
FINGERPRINT: Final = Fingerprint(b"counts")


def count_key(minute: int, place: int) -> StorageKey:
    """The name of the record at *place*, 0 or more, among those of *minute*, in minutes since 1970."""
    return StorageKey(f"{_PREFIX}{minute}.{place}")


def is_count(key: StorageKey) -> bool:
    """
    Whether the record of this name holds counts, and no client's operation.

    >>> from idempotency import storage_key
    >>> is_count(count_key(29_384_512, 0)), is_count(storage_key("=counts", "29384512.0"))
    (True, False)
    """
    return key.startswith(_PREFIX)


def encode_counts(counts: Mapping[Series, int]) -> bytes:
    """The outcome that holds *counts*."""
    return encode_value(dict(counts))


def read_counts(outcome: bytes | None) -> Counter[Series]:
    """The counts in *outcome*; none where it is of another form, or missing because its writer died."""
    try:
        decoded = None if outcome is None else decode(outcome)
    except StoreError:
        return Counter()
    if not isinstance(decoded, Value) or not isinstance(decoded.value, dict):
        return Counter()
    found = ((series, decoded.value.get(series)) for series in SERIES)
    return Counter({series: count for series, count in found if type(count) is int and count > 0})
