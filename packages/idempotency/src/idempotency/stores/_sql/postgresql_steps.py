"""The store's operations in PostgreSQL as steps, one statement each, for stores that use another driver."""

from __future__ import annotations

from typing import Protocol

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.store import Page
from idempotency.stores._sql.postgresql_rows import (
    acquire_values,
    claim_values,
    complete_values,
    read_acquired,
    read_completed_in,
    read_live_records,
    read_record,
)
from idempotency.stores._sql.postgresql_statements import PURGE_BATCH, SWEEP, Statements
from idempotency.stores._sql.steps import Query, Steps

__all__ = ["PostgresRecords", "complete_in"]


class _Caller(Protocol):
    tests: bool


def complete_in(
    sql: Statements, caller: _Caller, claim: Claim, outcome: bytes, retention: float
) -> Steps[bool]:
    """
    Rule R3 in the transaction of *caller*; False if the outcome is already recorded.

    Raises:
        IsolationConflict, ValueError: See `read_completed_in`.
    """
    values = complete_values(claim, outcome, retention, sweep=0)
    (row,) = (yield Query(sql.complete_in, values)).rows
    return read_completed_in(row, claim, tests=caller.tests)


class PostgresRecords:
    """
    A store's operations on one table, with the table, records and promises of `PostgresStore`.

    Args:
        table: A plain lower-case name, or schema.name.
    Raises:
        ValueError: *table* is neither.
    """

    backend = "postgresql"

    def __init__(self, table: str) -> None:
        self.table = table
        self._sql = Statements.for_table(table)

    def schema(self) -> tuple[str, ...]:
        """The statements that create the table; they change nothing if it exists."""
        return tuple(part.strip() for part in self._sql.schema.split(";") if part.strip())

    def create(self) -> Steps[None]:
        """Create what is missing; a role without CREATE may use existing tables."""
        if (yield Query(self._sql.present, {})).rows != [(True,)]:
            # One statement, because each is committed by itself and the lock must cover them all.
            create = self._sql.create.replace("SELECT", "PERFORM", 1)
            yield Query(f"DO $create$ BEGIN {create} END $create$", {})

    def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool,
    ) -> Steps[Reply]:
        """Rule R1."""
        values = acquire_values(key, fingerprint, owner, lease, retention, takeover)
        (row,) = (yield Query(self._sql.acquire, values)).rows
        return read_acquired(row, key, owner)

    def renew(self, claim: Claim, *, lease: float) -> Steps[bool]:
        """Rule R4."""
        return bool((yield Query(self._sql.renew, claim_values(claim) | {"lease": lease})).rows)

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> Steps[bool]:
        """Rule R3; deletes two expired records in the same statement."""
        return bool(
            (yield Query(self._sql.complete, complete_values(claim, outcome, retention, sweep=SWEEP))).rows
        )

    def complete_in(self, caller: _Caller, claim: Claim, outcome: bytes, *, retention: float) -> Steps[bool]:
        """Rule R3 in a transaction that the caller began and will end."""
        return complete_in(self._sql, caller, claim, outcome, retention)

    def release(self, claim: Claim) -> Steps[bool]:
        """Rule R5."""
        return bool((yield Query(self._sql.release, claim_values(claim))).rows)

    def get(self, key: StorageKey) -> Steps[Record | None]:
        """The current record."""
        rows = (yield Query(self._sql.get, {"key": key})).rows
        return read_record(rows[0]) if rows else None

    def forget(self, key: StorageKey) -> Steps[bool]:
        """Delete a record in any state."""
        rows = (yield Query(self._sql.forget, {"key": key})).rows
        return bool(rows and rows[0][0])

    def purge(self, limit: int) -> Steps[int]:
        """Delete at most *limit* expired records."""
        purged = 0
        while purged < limit:
            batch = min(limit - purged, PURGE_BATCH)
            ((count,),) = (yield Query(self._sql.purge, {"limit": batch})).rows
            purged += int(count)
            if count < batch:
                break
        return purged

    def scan(self, limit: int, cursor: str | None) -> Steps[Page]:
        """One page in key order."""
        rows = (yield Query(self._sql.scan, {"after": cursor or "", "limit": limit})).rows
        return Page(read_live_records(rows), rows[-1][0] if len(rows) == limit else None)
