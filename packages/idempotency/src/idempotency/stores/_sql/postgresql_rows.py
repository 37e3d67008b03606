"""Builds the parameters of PostgreSQL's statements, and reads the rows that they return, without any I/O."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from idempotency._core.errors import CorruptRecord, IsolationConflict
from idempotency._core.recorded import check_seconds
from idempotency._core.types import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    Owner,
    Record,
    Reply,
    Running,
    State,
    StorageKey,
)
from idempotency.stores._sql.caller_errors import nested

__all__ = [
    "TRIES",
    "acquire_values",
    "claim_values",
    "complete_values",
    "overtaken",
    "read_acquired",
    "read_completed_in",
    "read_live_records",
    "read_record",
]

TRIES = 3
"""How often a call is tried: after a restart all connections of a pool are dead; a deadlock ends one call of two."""

# All values are converted, even if it seems needless: an application's connection may load types differently.


def acquire_values(
    key: StorageKey, fingerprint: Fingerprint, owner: Owner, lease: float, retention: float, takeover: bool
) -> dict[str, Any]:
    """The parameters of `acquire`."""
    return {
        "key": key,
        "fingerprint": fingerprint,
        "owner": owner,
        "lease": lease,
        "retention": retention,
        "takeover": takeover,
    }


def claim_values(claim: Claim) -> dict[str, Any]:
    """The parameters common to all writes of a claim."""
    return {"key": claim.key, "owner": claim.owner}


def complete_values(claim: Claim, outcome: bytes, retention: float, *, sweep: int) -> dict[str, Any]:
    """
    The parameters of `complete`; *sweep* is the number of expired rows to delete with it.

    Raises:
        ValueError: *outcome* is empty; the completed record would look as if it had no outcome.
    """
    if not outcome:
        raise ValueError("an outcome must not be empty")
    return claim_values(claim) | {"outcome": outcome, "retention": retention, "sweep": sweep}


def read_acquired(row: tuple[Any, ...], key: StorageKey, owner: Owner) -> Reply:
    """
    Reads the database's reply to `acquire`.

    Raises:
        CorruptRecord: The record has an impossible time.
    """
    _, fingerprint, holder, attempt, fence, outcome, lease_left, age, expires_in = row
    wrong = check_seconds(lease_left, age or 0.0, expires_in)
    if wrong is not None:
        raise wrong
    if outcome is not None:
        left = max(float(expires_in), 0.0)
        return Completed(Fingerprint(bytes(fingerprint)), bytes(outcome), max(float(age), 0.0), left)
    if bytes(holder) == owner:
        return Acquired(Claim(key, owner, int(attempt), int(fence)))
    return Running(Fingerprint(bytes(fingerprint)), max(float(lease_left), 0.0))


def read_completed_in(row: tuple[Any, ...], claim: Claim, *, tests: bool = False) -> bool:
    """
    Whether the claim still held its key and had no outcome, from the row of `complete_in`.

    Args:
        tests: Whether a savepoint is allowed, because a test harness put it around the transaction.
    Raises:
        IsolationConflict: The transaction's snapshot may be too old to tell.
        ValueError: The record was written inside a savepoint.
    """
    held, seen, isolation, inside_savepoint, fence = row
    if inside_savepoint and not tests:
        raise nested()
    if held or seen or isolation == "read committed":
        return bool(held)
    if fence is not None and fence > claim.fence:
        return False  # another owner was granted the key before the snapshot
    raise IsolationConflict(
        f"this transaction is {isolation.upper()}, and its snapshot may be older than the claim: roll back, and make "
        "effect and record in a READ COMMITTED transaction, or begin the transaction after the claim was made"
    )


def overtaken() -> IsolationConflict:
    """The error for a row that was changed after the transaction's snapshot, so that it cannot be locked (40001)."""
    return IsolationConflict(
        "this transaction is REPEATABLE READ or SERIALIZABLE, and something changed after its snapshot; a claim's "
        "record changes whenever its lease is renewed, every third of the lease: roll back, and make effect and "
        "record in a READ COMMITTED transaction, or in one that is over sooner"
    )


def read_record(row: tuple[Any, ...]) -> Record:
    """
    A row as a record.

    Raises:
        CorruptRecord: It has an impossible time.
    """
    key, fingerprint, owner, attempt, fence, outcome, lease_left, age, expires_in = row
    wrong = check_seconds(lease_left, age, expires_in)
    if wrong is not None:
        raise wrong
    running = outcome is None
    return Record(
        key=StorageKey(key),
        state=State.RUNNING if running else State.COMPLETED,
        fingerprint=Fingerprint(bytes(fingerprint)),
        owner=Owner(bytes(owner)),
        attempt=int(attempt),
        fence=int(fence),
        outcome=None if running else bytes(outcome),
        lease_left=float(lease_left) if running else 0.0,
        age=max(float(age), 0.0),  # negative if the server's clock was set back
        expires_in=float(expires_in),
    )


def read_live_records(rows: list[tuple[Any, ...]]) -> tuple[Record, ...]:
    """The live records among *rows*; those that cannot be read are left out."""
    records = []
    for row in rows:
        with suppress(CorruptRecord):
            records.append(read_record(row))
    return tuple(record for record in records if record.expires_in > 0)
