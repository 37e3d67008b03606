"""Finds calls recorded under two principals, which happens when the tenant is taken from a credential."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from idempotency._core.types import Record
from idempotency.cli.doctor.finding import Finding
from idempotency.store import SyncInspectable, SyncStore

__all__ = ["principals"]

_MOST: Final = 10_000  # records that are examined
# A random UUID (RFC 9562): two callers would not draw the same one.
_RANDOM = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


def principals(store: SyncStore) -> Iterator[Finding]:
    """
    Look for one request under one random key that ran for several tenants, in up to 10,000 records.

    Raises:
        StoreError: The store did not answer.
    """
    if not isinstance(store, SyncInspectable):
        return
    tenants: dict[tuple[str, bytes], set[str]] = {}
    seen = 0
    cursor: str | None = None
    while seen < _MOST:
        page = store.scan(limit=500, cursor=cursor)
        for record in page.records:
            seen += 1
            tenant, colon, key = record.key.partition(":")
            if colon and _RANDOM.fullmatch(key) and _is_response(record):
                tenants.setdefault((key, record.fingerprint), set()).add(tenant)
        cursor = page.cursor
        if cursor is None:
            break
    repeated = sum(len(found) > 1 for found in tenants.values())
    if repeated:
        yield Finding(
            "principal",
            "warn",
            f"{repeated} calls ran for more than one tenant, each with the same random key and the same request: is "
            "the tenant a credential that was replaced between two attempts? Use by_user(), or a callable that returns "
            "the verified principal",
        )
    elif tenants:
        yield Finding("principal", "ok", "no call ran for more than one tenant")


def _is_response(record: Record) -> bool:
    """Whether the record is a response; two decorated functions may rightly share a key and arguments."""
    if record.outcome is None:
        return False
    try:
        return bool(json.loads(record.outcome)["outcome"] in {"response", "unreplayable"})
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
