"""
Records in one SQLite file, shared by every process of one machine: survives crashes, needs no server.

Durable by default: WAL with `synchronous=FULL` syncs each claim and each outcome before the call returns. Leases are
judged by the time since boot and survive steps of the wall clock. With `complete_in` the record is committed in the
transaction of the effect itself, which makes the effect effectively once.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from idempotency._backends.threads import Threads
from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.store import Page
from idempotency.stores.sqlite.file import Busy, DatabaseFile, translated
from idempotency.stores.sqlite.records import Clocks, Records

__all__ = ["SQLiteStore", "SyncSQLiteStore"]

T = TypeVar("T")

_THREADS = 8  # calls that may wait for another writer at once; they share one connection, so they only wait


class SyncSQLiteStore:
    """
    A store in one file on a local disk, for threads and processes.

    Args:
        path: The file, created with its tables on first use; its directory must exist.
        table: A plain SQL identifier; several stores may share a file under different names.
        busy_timeout: Seconds to wait for another process, and as long for another thread, before a call raises
            `StoreUnavailable`.
        synchronous: SQLite's own setting. FULL survives a loss of power; NORMAL may lose the last commits then.
        clock: Seconds from any origin, for tests; by default time since boot for leases, wall time for retention.

    Raises:
        StoreError: The file is on a network file system, or SQLite refuses WAL for it, or the table is another's.
        StoreUnavailable: The file cannot be opened, written or read now. It is created once, on opening; if it
            disappears later, every call raises this until it is back or the process starts anew.

    Atomic: each call is one transaction (`BEGIN IMMEDIATE`), or one read where nothing is to be written. Safe to use
    from many threads, and to open before a fork: the child opens a connection of its own.
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
        return self._file.run(
            lambda connection: self._records.acquire(
                connection,
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
        return self._file.run(lambda connection: self._records.renew(connection, claim, lease))

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. Deletes a few expired records in the same transaction."""
        return self._file.run(
            lambda connection: self._records.complete(connection, claim, outcome, retention)
        )

    def complete_in(
        self, connection: sqlite3.Connection, claim: Claim, outcome: bytes, *, retention: float
    ) -> bool:
        """
        Record the outcome in a transaction of the caller's: effect and record are committed together, or neither.

        Args:
            connection: Open on the same file, inside the transaction that makes the effect; not committed here.
            retention: Seconds.
        Returns:
            False if the claim no longer holds the key: roll back, the effect is not yours to make.
        Raises:
            ValueError: No transaction has begun, or the connection is to another file.
            StoreUnavailable: Roll back and repeat; nothing has taken effect.
        """
        return _complete_in(self._file, self._records, connection, claim, outcome, retention)

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return self._file.run(lambda connection: self._records.release(connection, claim))

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return self._file.run(lambda connection: self._records.get(connection, key))

    def close(self) -> None:
        """Close the connection; later calls raise `StoreUnavailable`."""
        self._file.close()

    def purge(self, *, limit: int = 1_000) -> int:
        """See `Purgeable.purge`. One transaction: other writers wait for it, so keep *limit* moderate."""
        return self._file.run(lambda connection: self._records.purge(connection, limit))

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`. In key order; records that cannot be read are left out."""
        return self._file.run(lambda connection: self._records.scan(connection, limit, cursor))

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`. Deletes records that cannot be read, too."""
        return self._file.run(lambda connection: self._records.forget(connection, key))


class SQLiteStore:
    """
    `SyncSQLiteStore` for an event loop, asyncio or trio.

    A call first runs in the loop itself, without waiting for any lock, because a thread costs more than the call.
    Only where another writer holds the file does it move to a worker thread, and waits there for *busy_timeout*. With
    `synchronous=FULL` the loop does wait for the disk to sync: put the file on a disk that does so in well under a
    millisecond, or choose NORMAL.

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
            lambda connection: self._records.acquire(
                connection,
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
        return await self._run(lambda connection: self._records.renew(connection, claim, lease))

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `SyncSQLiteStore.complete`."""
        return await self._run(
            lambda connection: self._records.complete(connection, claim, outcome, retention)
        )

    def complete_in(
        self, connection: sqlite3.Connection, claim: Claim, outcome: bytes, *, retention: float
    ) -> bool:
        """See `SyncSQLiteStore.complete_in`; a plain function, called where the transaction runs."""
        return _complete_in(self._patient, self._records, connection, claim, outcome, retention)

    async def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return await self._run(lambda connection: self._records.release(connection, claim))

    async def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return await self._run(lambda connection: self._records.get(connection, key))

    async def aclose(self) -> None:
        """Close both connections; later calls raise `StoreUnavailable`."""
        self._eager.close()
        await self._threads.run(self._patient.close)
        self._threads.close()

    async def purge(self, *, limit: int = 1_000) -> int:
        """See `SyncSQLiteStore.purge`; always in a worker thread."""
        return await self._threads.run(lambda: self._patient.run(lambda c: self._records.purge(c, limit)))

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SyncSQLiteStore.scan`; always in a worker thread."""
        return await self._threads.run(
            lambda: self._patient.run(lambda c: self._records.scan(c, limit, cursor))
        )

    async def forget(self, key: StorageKey) -> bool:
        """See `SyncSQLiteStore.forget`."""
        return await self._run(lambda connection: self._records.forget(connection, key))

    async def _run(self, call: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._eager.run(call)
        except Busy:  # nothing was changed, so the call may be made again where waiting hurts nobody
            return await self._threads.run(lambda: self._patient.run(call))


def _records(table: str, clock: Callable[[], float] | None) -> Records:
    return Records(table, Clocks.of_this_machine() if clock is None else Clocks.injected(clock))


def _complete_in(
    file: DatabaseFile,
    records: Records,
    connection: sqlite3.Connection,
    claim: Claim,
    outcome: bytes,
    retention: float,
) -> bool:
    if not connection.in_transaction:
        raise ValueError(
            "begin a transaction and make the effect in it first; the record joins that transaction"
        )
    if not file.is_open_on(connection):
        raise ValueError(f"the connection is not to {file.path.name}, where this store keeps its records")
    try:
        return records.write_outcome(connection, claim, outcome, retention)
    except sqlite3.Error as error:
        raise translated(error, 0.0) from error
