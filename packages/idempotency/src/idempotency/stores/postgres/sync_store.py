# Generated from async_store.py by scripts/unasync: edit that file, not this one.
"""`SyncPostgresStore`: records in PostgreSQL, for plain functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.store import Page
from idempotency.stores._sql.caller_errors import translated, wrong_kind
from idempotency.stores._sql.callers import sync_caller
from idempotency.stores._sql.postgresql_errors import in_transaction
from idempotency.stores._sql.postgresql_rows import (
    TRIES,
    acquire_values,
    claim_values,
    complete_values,
    read_acquired,
    read_live_records,
    read_record,
)
from idempotency.stores._sql.postgresql_statements import PURGE_BATCH, SWEEP, Statements
from idempotency.stores._sql.postgresql_steps import complete_in
from idempotency.stores.postgres.deadlines import SyncCalls
from idempotency.stores.postgres.errors import cannot_create, is_gone, is_transient, to_store_error

if TYPE_CHECKING:
    from idempotency.stores._sql.caller_types import SyncPostgresConnection

_TAKES = ("psycopg.Connection", "SQLAlchemy's Session or Connection", "Django's connection")

__all__ = ["SyncPostgresStore"]


class SyncPostgresStore:
    """
    A store for many processes and threads.

    Args:
        pool: Connections to the primary. The caller opens and closes it, unless *owns_pool* is set. After a fork
            make a new pool and a new store.
        table: The table's name, or schema.name, in lower case.
        deadline: Seconds for a whole call: waiting for the pool, the statement, its repeats. Each call
            runs in one of the store's threads, as many as the pool has connections, because the driver
            cannot be told to stop waiting. An abandoned call keeps its thread until the server or the
            network ends it (`tcp_user_timeout` in the connection string limits that time).
        owns_pool: Whether the store opens *pool* when it is first used, and `close` closes it.

    Every method raises `StoreUnavailable` if there was no answer. Atomic: one statement per call, READ COMMITTED.
    An acknowledged claim survives a failover only with synchronous replication; see `docs/failure-modes.md`.
    """

    def __init__(
        self,
        pool: ConnectionPool[Any],
        *,
        table: str = "idempotency_record",
        deadline: float = 1.0,
        owns_pool: bool = False,
    ) -> None:
        if not 0 < deadline < math.inf:
            raise ValueError(f"deadline must be a positive number of seconds, not {deadline}")
        self._pool = pool
        self._sql = Statements.for_table(table)
        self._deadline = deadline
        self._owns_pool = owns_pool
        self._calls = SyncCalls(self, pool, deadline)

    def create_schema(self) -> None:
        """Create the table, its index and its sequence if they are missing. For migrations, see `schema_sql`."""
        self._calls.bind()
        try:
            self._open()
            with self._pool.connection() as connection, self._cursor(connection) as cursor:
                cursor.execute(self._sql.present.encode())
                if cursor.fetchone() != (True,):
                    cursor.execute(self._sql.create.encode(), prepare=False)
        except psycopg.Error as error:
            raise cannot_create(error) from error

    def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool = True,
    ) -> Reply:
        """See `Store.acquire`. A replay writes nothing and takes no lock."""
        values = acquire_values(key, fingerprint, owner, lease, retention, takeover)
        (row,) = self._run(self._sql.acquire, values)
        return read_acquired(row, key, owner)

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return bool(self._run(self._sql.renew, claim_values(claim) | {"lease": lease}))

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. Also deletes two expired records."""
        values = complete_values(claim, outcome, retention, sweep=SWEEP)
        return bool(self._run(self._sql.complete, values))

    def complete_in(
        self, connection: SyncPostgresConnection, claim: Claim, outcome: bytes, *, retention: float
    ) -> bool:
        """
        Record the outcome in the caller's transaction: effect and record are committed together, or neither.

        Args:
            connection: To the same database, inside the transaction that makes the effect; not committed here. A
                `psycopg.Connection`, SQLAlchemy's `Session` or `Connection`, or Django's `connection`.
            retention: Seconds.
        Returns:
            False if the claim no longer holds the key, or its outcome is already recorded, even by this claim: then
            roll back, because the effect belongs to another run or was already made.
        Raises:
            TypeError: *connection* is none of these.
            ValueError: It commits every statement, leads to another kind of database, or is inside a savepoint.
            IsolationConflict: The isolation level is above READ COMMITTED and the snapshot too old; see the message.
            StoreError: The connection refuses the record, and a retry will not help; the message says why.
            StoreUnavailable: Roll back and try again; nothing has taken effect.

        1 round trip.
        """
        caller = sync_caller(connection, "postgresql")
        if caller is None:
            raise wrong_kind(
                self, connection, *_TAKES, instead="PostgresStore takes connections with an event loop"
            )
        steps = complete_in(self._sql, caller, claim, outcome, retention)
        return caller.drive(translated(steps, in_transaction))

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return bool(self._run(self._sql.release, claim_values(claim), removes=True))

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        rows = self._run(self._sql.get, {"key": key})
        return read_record(rows[0]) if rows else None

    def purge(self, *, limit: int = 1_000) -> int:
        """See `Purgeable.purge`. In batches, each within the deadline; skips rows that others have locked."""
        purged = 0
        while purged < limit:
            batch = min(limit - purged, PURGE_BATCH)
            ((count,),) = self._run(self._sql.purge, {"limit": batch}, removes=True)
            purged += count
            if count < batch:
                break
        return purged

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`. In key order; records that cannot be read are left out."""
        rows = self._run(self._sql.scan, {"after": cursor or "", "limit": limit})
        return Page(read_live_records(rows), rows[-1][0] if len(rows) == limit else None)

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        rows = self._run(self._sql.forget, {"key": key}, removes=True)
        return bool(rows and rows[0][0])

    def close(self) -> None:
        """Wait for abandoned calls; the pool stays open unless the store owns it."""
        self._calls.close()
        if self._owns_pool and not self._pool.closed:
            self._calls.bind()
            self._pool.close()

    def _run(
        self, statement: str, values: Mapping[str, Any], *, removes: bool = False
    ) -> list[tuple[Any, ...]]:
        return self._calls.within_deadline(lambda: self._execute(statement, values, removes))

    def _execute(self, statement: str, values: Mapping[str, Any], removes: bool) -> list[tuple[Any, ...]]:
        uncertain: psycopg.Error | None = None  # of an earlier try, which may have had an effect
        for tries_left in reversed(range(TRIES)):
            try:
                rows = self._execute_once(statement, values)
            except psycopg.Error as error:
                if not (tries_left and (is_gone(error) or is_transient(error))):
                    raise to_store_error(error) from error
                if is_gone(error):
                    uncertain = error
                    self._pool.check()  # the other connections are most likely lost too
            else:
                if removes and uncertain is not None and rows in ([], [(0,)]):
                    # An earlier try may have removed the record, so this does not mean that there was none.
                    raise to_store_error(uncertain) from uncertain
                return rows
        raise AssertionError("the last try returns or raises")

    def _execute_once(self, statement: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        self._open()
        with self._pool.connection(timeout=self._deadline) as connection:
            theirs = connection.autocommit
            # A setting of the driver only; it saves the round trips of BEGIN and COMMIT.
            connection.set_autocommit(True)
            try:
                with self._cursor(connection) as cursor:
                    cursor.execute(statement.encode(), values, binary=True)
                    rows: list[tuple[Any, ...]] = cursor.fetchall()
                    return rows
            finally:
                if not connection.closed:
                    connection.set_autocommit(theirs)

    def _cursor(self, connection: psycopg.Connection[Any]) -> psycopg.Cursor[Any]:
        """A plain cursor, because the pool's connections may make cursors and rows of other kinds."""
        return psycopg.Cursor(connection, row_factory=tuple_row)

    def _open(self) -> None:
        if self._owns_pool and self._pool.closed:
            self._pool.open()
