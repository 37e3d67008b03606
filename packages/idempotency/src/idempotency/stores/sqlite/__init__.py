"""
Records in one SQLite file, shared by all processes of one machine: survives crashes, needs no server.

Durable by default: WAL with `synchronous=FULL` syncs each claim and each outcome to disk before the call returns.
Leases are measured in time since boot, so setting the wall clock does not change them. With `complete_in` the record is
committed in the same transaction as the effect, so that the effect happens effectively once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, overload

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._runtime.threads import Threads
from idempotency.store import Page
from idempotency.stores._sql.sqlite import Clocks, SqliteRecords
from idempotency.stores._sql.sqlite_errors import Busy
from idempotency.stores._sql.steps import Steps
from idempotency.stores.sqlite.file import DatabaseFile
from idempotency.stores.sqlite.transaction import PendingAnswer, complete_in, complete_in_async

if TYPE_CHECKING:
    from idempotency.stores._sql.caller_types import AsyncSqliteConnection, SyncSqliteConnection

__all__ = ["SQLiteStore", "SyncSQLiteStore"]

T = TypeVar("T")

_THREADS = 8  # the number of calls that may wait for another writer at once


class SyncSQLiteStore:
    """
    A store in one file on a local disk, for threads and processes.

    Args:
        path: The file, created with its tables on first use; its directory must exist.
        table: A plain SQL identifier; several stores may share a file under different names.
        busy_timeout: Seconds to wait for another process, and the same again for another thread, before a call raises
            `StoreUnavailable`.
        synchronous: SQLite's own setting. With FULL commits survive a power loss; with NORMAL the last may be lost.
        clock: Seconds from any origin, for tests; by default time since boot for leases, wall time for retention.

    Raises:
        StoreError: The file is on a network file system, or SQLite refuses WAL for it, or a table of this name exists
            that is not this store's.
        StoreUnavailable: The file cannot be opened, written or read now. It is created once, on opening; if it
            disappears later, every call raises this until it is back or the process is restarted.

    Atomic: each call is one transaction (`BEGIN IMMEDIATE`), or one read if nothing has to be written. Safe to use
    from many threads, and to open before a fork: the child opens its own connection.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        table: str = "idempotency_record",
        busy_timeout: float = 5.0,
        synchronous: str = "FULL",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._busy_timeout = busy_timeout
        self._records = _records(table, clock)
        self._file = DatabaseFile(
            path, busy_timeout=busy_timeout, synchronous=synchronous, set_up=self._records.create
        )

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
        """See `Store.acquire`. A replay is one read; a claim is one transaction and one sync."""
        return self._file.execute(
            lambda: self._records.acquire(
                key,
                fingerprint=fingerprint,
                owner=owner,
                lease=lease,
                retention=retention,
                takeover=takeover,
            )
        )

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return self._file.execute(lambda: self._records.renew(claim, lease=lease))

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. Deletes a few expired records in the same transaction."""
        return self._file.execute(lambda: self._records.complete(claim, outcome, retention=retention))

    def complete_in(
        self, connection: SyncSqliteConnection, claim: Claim, outcome: bytes, *, retention: float
    ) -> bool:
        """
        Record the outcome in the caller's transaction: effect and record are committed together, or neither.

        Args:
            connection: Open on the same file, inside the transaction that makes the effect; not committed here. A
                `sqlite3.Connection`, SQLAlchemy's `Session` or `Connection`, or Django's `connection`.
            retention: Seconds.
        Returns:
            False if the claim no longer holds the key, or its outcome is already recorded, even by this claim: then
            roll back, because the effect belongs to another run or was already made.
        Raises:
            TypeError: *connection* is none of these.
            ValueError: No transaction has begun, it is inside a savepoint (a plain sqlite3 connection cannot tell), or
                the connection is to another file.
            IsolationConflict: The transaction began to read before the claim last changed: roll back, BEGIN IMMEDIATE.
            StoreError: The connection refuses the record, and a retry will not help; the message says why.
            StoreUnavailable: Roll back and try again; nothing has taken effect.
        """
        return complete_in(self, self._file, self._records, connection, claim, outcome, retention)

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return self._file.execute(lambda: self._records.release(claim))

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return self._file.execute(lambda: self._records.get(key))

    def create_schema(self) -> None:
        """Do nothing: the table was created when the file was opened."""

    def close(self) -> None:
        """Close the connection; later calls raise `StoreUnavailable`."""
        self._file.close()

    def purge(self, *, limit: int = 1_000) -> int:
        """See `Purgeable.purge`. One transaction: other writers wait for it, so keep *limit* moderate."""
        return self._file.execute(lambda: self._records.purge(limit))

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`. In key order; records that cannot be read are left out."""
        return self._file.execute(lambda: self._records.scan(limit, cursor))

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`. Also deletes records that cannot be read."""
        return self._file.execute(lambda: self._records.forget(key))


class SQLiteStore:
    """
    `SyncSQLiteStore` for an event loop, asyncio or trio.

    A call first runs in the loop itself, without waiting for any lock, because a thread costs more than the call. Only
    if another writer holds the file, the call moves to a worker thread and waits there for up to *busy_timeout*. With
    `synchronous=FULL` the loop waits for the disk to sync: use a disk that syncs in well under a millisecond, or choose
    NORMAL.

    Args: see `SyncSQLiteStore`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        table: str = "idempotency_record",
        busy_timeout: float = 5.0,
        synchronous: str = "FULL",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._records = _records(table, clock)
        self._eager, self._patient = (
            DatabaseFile(path, busy_timeout=seconds, synchronous=synchronous, set_up=self._records.create)
            for seconds in (0.0, busy_timeout)
        )
        self._threads = Threads(_THREADS, "idempotency-sqlite")

    async def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool = True,
    ) -> Reply:
        """See `SyncSQLiteStore.acquire`."""
        return await self._run(
            lambda: self._records.acquire(
                key,
                fingerprint=fingerprint,
                owner=owner,
                lease=lease,
                retention=retention,
                takeover=takeover,
            )
        )

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return await self._run(lambda: self._records.renew(claim, lease=lease))

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `SyncSQLiteStore.complete`."""
        return await self._run(lambda: self._records.complete(claim, outcome, retention=retention))

    @overload
    def complete_in(
        self, connection: SyncSqliteConnection, claim: Claim, outcome: bytes, *, retention: float
    ) -> bool: ...
    @overload
    def complete_in(
        self, connection: AsyncSqliteConnection, claim: Claim, outcome: bytes, *, retention: float
    ) -> PendingAnswer: ...
    def complete_in(
        self,
        connection: SyncSqliteConnection | AsyncSqliteConnection,
        claim: Claim,
        outcome: bytes,
        *,
        retention: float,
    ) -> bool | PendingAnswer:
        """
        See `SyncSQLiteStore.complete_in`; a plain function: call it where the transaction runs.

        For `aiosqlite.Connection` and SQLAlchemy's `AsyncSession` and `AsyncConnection` await its result.
        """
        return complete_in_async(self, self._patient, self._records, connection, claim, outcome, retention)

    async def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return await self._run(lambda: self._records.release(claim))

    async def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return await self._run(lambda: self._records.get(key))

    async def create_schema(self) -> None:
        """Do nothing: the table was created when the file was opened."""

    async def aclose(self) -> None:
        """Close both connections; later calls raise `StoreUnavailable`."""
        self._eager.close()
        await self._threads.run(self._patient.close)
        self._threads.close()

    async def purge(self, *, limit: int = 1_000) -> int:
        """See `SyncSQLiteStore.purge`; always in a worker thread."""
        return await self._threads.run(lambda: self._patient.execute(lambda: self._records.purge(limit)))

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SyncSQLiteStore.scan`; always in a worker thread."""
        return await self._threads.run(
            lambda: self._patient.execute(lambda: self._records.scan(limit, cursor))
        )

    async def forget(self, key: StorageKey) -> bool:
        """See `SyncSQLiteStore.forget`."""
        return await self._run(lambda: self._records.forget(key))

    async def _run(self, call: Callable[[], Steps[T]]) -> T:
        try:
            return self._eager.execute(call)
        except Busy:  # nothing was changed, so try again in a thread, which may wait
            return await self._threads.run(lambda: self._patient.execute(call))


def _records(table: str, clock: Callable[[], float] | None) -> SqliteRecords:
    return SqliteRecords(table, None if clock is None else Clocks.injected(clock))
