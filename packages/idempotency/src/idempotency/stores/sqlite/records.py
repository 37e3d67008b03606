"""
The rows of the SQLite store and the decisions on them, on whatever connection is given.

Each write is decided and made inside one `BEGIN IMMEDIATE`, so that no other writer comes between. Leases are judged
by the time since boot, which a step of the wall clock does not touch; a lease of another boot has lapsed. Retention
is wall time, which outlives a reboot.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import NamedTuple

from idempotency._core.errors import CorruptRecord, StoreError, StoreUnavailable, UnknownRecordVersion
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
    key_id,
)
from idempotency.store import Page

__all__ = ["Clocks", "Records"]

_VERSION = 1
_SWEEP = 2  # expired rows deleted by each complete: more than it adds, so the file stops growing under load
_TABLE = re.compile(r"(?!sqlite_)[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII | re.IGNORECASE)


class Clocks(NamedTuple):
    """Which boot this is, seconds since it, and seconds of the wall clock."""

    boot_id: bytes
    boot: Callable[[], float]
    wall: Callable[[], float]

    @classmethod
    def of_this_machine(cls) -> Clocks:
        """Linux has a clock that counts suspended time too, and a name for each boot; elsewhere wall time serves."""
        if sys.platform == "linux":
            try:
                boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
            except OSError:
                boot_id = b""
            if boot_id:
                return cls(boot_id, lambda: time.clock_gettime(time.CLOCK_BOOTTIME), time.time)
        return cls(b"", time.time, time.time)

    @classmethod
    def injected(cls, clock: Callable[[], float]) -> Clocks:
        """One clock for everything, in tests."""
        return cls(b"injected", clock, clock)


class _Row(NamedTuple):
    version: int
    fingerprint: Fingerprint
    owner: Owner
    attempt: int
    fence: int
    boot: bytes
    lease_until: float  # s since that boot
    retention: float
    expires_at: float  # s, wall clock
    completed_at: float | None  # s, wall clock
    outcome: bytes | None


_COLUMNS = ", ".join(_Row._fields)
_HEAD = (int, bytes, bytes, int, int, bytes, float, float, float)
_SHAPES = {(*_HEAD, NoneType, NoneType), (*_HEAD, float, bytes)}


class Records:
    """What a store does with one table, given a connection; the caller owns the connection and handles its errors."""

    def __init__(self, table: str, clocks: Clocks) -> None:
        if not _TABLE.fullmatch(table):
            raise ValueError(f"table must be a plain SQL identifier of at most 63 characters, not {table!r}")
        self.table = table
        self._clocks = clocks
        self._select = f"SELECT {_COLUMNS} FROM {table} WHERE key = ?"  # noqa: S608 - the name is checked above
        self._fence = f"UPDATE {table}_fence SET last = max(last + 1, ?) RETURNING last"  # noqa: S608
        self._grant = (
            f"INSERT OR REPLACE INTO {table} (key, {_COLUMNS}) VALUES (?{', ?' * len(_Row._fields)})"  # noqa: S608
        )
        self._push = f"UPDATE {table} SET boot = ?, lease_until = ?, expires_at = ? WHERE key = ?"  # noqa: S608
        self._settle = f"UPDATE {table} SET outcome = ?, completed_at = ?, expires_at = ? WHERE key = ?"  # noqa: S608
        self._delete = f"DELETE FROM {table} WHERE key = ?"  # noqa: S608
        self._expired = (
            f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE expires_at <= ? AND version = ? "  # noqa: S608
            "AND (outcome IS NOT NULL OR boot <> ? OR lease_until <= ?) LIMIT ?)"
        )

    def create(self, connection: sqlite3.Connection) -> None:
        """Create what is missing. The fence has a table of its own, so that emptying the other cannot lower it."""
        known = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN (?, ?)"
        if connection.execute(known, (self.table, f"{self.table}_fence")).fetchone() != (2,):
            connection.execute("BEGIN IMMEDIATE")
            for statement in (
                f"CREATE TABLE IF NOT EXISTS {self.table} (key TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL, "
                "fingerprint BLOB NOT NULL, owner BLOB NOT NULL, attempt INTEGER NOT NULL, fence INTEGER NOT NULL, "
                "boot BLOB NOT NULL, lease_until REAL NOT NULL, retention REAL NOT NULL, expires_at REAL NOT NULL, "
                "completed_at REAL, outcome BLOB)",
                f"CREATE INDEX IF NOT EXISTS {self.table}_expires_at ON {self.table} (expires_at)",
                f"CREATE TABLE IF NOT EXISTS {self.table}_fence (last INTEGER NOT NULL)",
                f"INSERT INTO {self.table}_fence SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM {self.table}_fence)",  # noqa: S608
            ):
                connection.execute(statement)
            connection.execute("COMMIT")
        try:
            connection.execute(self._select, ("",))
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"the table {self.table} has not the columns of this store; give the store another table"
            ) from error

    def acquire(
        self,
        connection: sqlite3.Connection,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool,
    ) -> Reply:
        """Answer from a plain read where nothing is to be written: in WAL a reader never waits."""
        found = self._standing_reply(self._load(connection, key), fingerprint, owner, takeover)
        if found is not None:
            return found
        connection.execute("BEGIN IMMEDIATE")
        row = self._load(connection, key)  # again, now that nobody else can write
        reply: Reply | None = self._standing_reply(row, fingerprint, owner, takeover)
        if reply is None:
            reply = self._claim(connection, key, row, fingerprint, owner, lease, retention)
        connection.execute("COMMIT")
        return reply

    def renew(self, connection: sqlite3.Connection, claim: Claim, lease: float) -> bool:
        """Extend the lease of *claim* to *lease* seconds from now, in one transaction (R4)."""
        connection.execute("BEGIN IMMEDIATE")
        row = self._held(connection, claim)
        if row is not None:
            self._extend(connection, claim.key, row, lease)
        connection.execute("COMMIT")
        return row is not None

    def complete(
        self, connection: sqlite3.Connection, claim: Claim, outcome: bytes, retention: float
    ) -> bool:
        """Record the outcome of *claim* in one transaction; a repeat keeps the first outcome (R3)."""
        connection.execute("BEGIN IMMEDIATE")
        done = self.write_outcome(connection, claim, outcome, retention)
        if done:
            self._sweep(connection, _SWEEP)
        connection.execute("COMMIT")
        return done

    def write_outcome(
        self, connection: sqlite3.Connection, claim: Claim, outcome: bytes, retention: float
    ) -> bool:
        """Rule R3 in a transaction that the caller began and will end."""
        row = self._load(connection, claim.key)
        if row is None or row.owner != claim.owner:
            return False
        if row.outcome is None:
            now = self._clocks.wall()
            connection.execute(self._settle, (outcome, now, now + retention, claim.key))
        return True

    def release(self, connection: sqlite3.Connection, claim: Claim) -> bool:
        """Delete the running record of *claim*, in one transaction (R5)."""
        connection.execute("BEGIN IMMEDIATE")
        held = self._held(connection, claim) is not None
        if held:
            connection.execute(self._delete, (claim.key,))
        connection.execute("COMMIT")
        return held

    def get(self, connection: sqlite3.Connection, key: StorageKey) -> Record | None:
        """The record of *key* as it is now, expired ones excluded."""
        row = self._load(connection, key)
        return None if row is None else self._record(key, row)

    def forget(self, connection: sqlite3.Connection, key: StorageKey) -> bool:
        """Delete the record of *key*, whatever its state, in one transaction."""
        connection.execute("BEGIN IMMEDIATE")
        deleted = connection.execute(self._delete, (key,)).rowcount > 0
        connection.execute("COMMIT")
        return deleted

    def purge(self, connection: sqlite3.Connection, limit: int) -> int:
        """Delete at most *limit* expired records, in one transaction; returns how many."""
        connection.execute("BEGIN IMMEDIATE")
        deleted = self._sweep(connection, limit)
        connection.execute("COMMIT")
        return deleted

    def scan(self, connection: sqlite3.Connection, limit: int, cursor: str | None) -> Page:
        """One page in key order; rows that cannot be read are left out, `get` says what is wrong with each."""
        rows = connection.execute(
            f"SELECT key, {_COLUMNS} FROM {self.table} WHERE key > ? ORDER BY key LIMIT ?",  # noqa: S608
            (cursor or "", limit),
        ).fetchall()
        records = []
        for key, *columns in rows:
            try:
                row = self._read(key, tuple(columns))
            except (CorruptRecord, UnknownRecordVersion):
                continue
            if self._alive(row):
                records.append(self._record(key, row))
        return Page(tuple(records), rows[-1][0] if len(rows) == limit else None)

    def _standing_reply(
        self, row: _Row | None, fingerprint: Fingerprint, owner: Owner, takeover: bool
    ) -> Running | Completed | None:
        """The reply where the record stays as it is; None where the key is this owner's to take (R1, R2)."""
        if row is None:
            return None
        if row.outcome is not None and row.completed_at is not None:
            now = self._clocks.wall()
            return Completed(
                row.fingerprint, row.outcome, max(now - row.completed_at, 0.0), row.expires_at - now
            )
        if row.owner == owner:
            return None
        left = self._lease_left(row)
        if left > 0.0:
            return Running(row.fingerprint, left)
        return None if takeover and row.fingerprint == fingerprint else Running(row.fingerprint, 0.0)

    def _claim(
        self,
        connection: sqlite3.Connection,
        key: StorageKey,
        row: _Row | None,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
    ) -> Acquired:
        if row is not None and row.owner == owner:
            self._extend(connection, key, row, lease)
            return Acquired(Claim(key, owner, row.attempt, row.fence))
        attempt = 1 if row is None else row.attempt + 1
        boot_id, boot, wall = self._clocks.boot_id, self._clocks.boot(), self._clocks.wall()
        # Wall time in microseconds keeps it rising even past the loss of the whole file (R9).
        found = connection.execute(self._fence, (int(wall * 1_000_000),)).fetchone()
        if found is None:
            raise StoreUnavailable(
                f"the counter in {self.table}_fence is gone; restore it or use another table"
            )
        fence = int(found[0])
        connection.execute(
            self._grant,
            (
                key,
                _VERSION,
                fingerprint,
                owner,
                attempt,
                fence,
                boot_id,
                boot + lease,
                retention,
                wall + lease + retention,
                None,
                None,
            ),
        )
        return Acquired(Claim(key, owner, attempt, fence))

    def _extend(self, connection: sqlite3.Connection, key: StorageKey, row: _Row, lease: float) -> None:
        until = self._clocks.boot() + lease
        if row.boot == self._clocks.boot_id:
            until = max(until, row.lease_until)  # R4
        expires_at = max(row.expires_at, self._clocks.wall() + lease + row.retention)
        connection.execute(self._push, (self._clocks.boot_id, until, expires_at, key))

    def _held(self, connection: sqlite3.Connection, claim: Claim) -> _Row | None:
        row = self._load(connection, claim.key)
        return row if row is not None and row.owner == claim.owner and row.outcome is None else None

    def _sweep(self, connection: sqlite3.Connection, limit: int) -> int:
        clocks = self._clocks
        found = connection.execute(
            self._expired, (clocks.wall(), _VERSION, clocks.boot_id, clocks.boot(), limit)
        )
        return found.rowcount

    def _load(self, connection: sqlite3.Connection, key: StorageKey) -> _Row | None:
        cursor = connection.cursor()
        cursor.row_factory = None  # the connection may be an application's own (complete_in)
        columns = cursor.execute(self._select, (key,)).fetchone()
        if columns is None:
            return None
        row = self._read(key, columns)
        return row if self._alive(row) else None

    def _read(self, key: StorageKey, columns: tuple[object, ...]) -> _Row:
        if columns[0] != _VERSION:
            raise UnknownRecordVersion(
                f"record {key_id(key)} has version {columns[0]!r} and this library reads {_VERSION}; "
                "finish the upgrade of all processes"
            )
        if tuple(map(type, columns)) not in _SHAPES:
            raise CorruptRecord(f"record {key_id(key)} cannot be read; look at it and forget it by hand")
        return _Row._make(columns)

    def _alive(self, row: _Row) -> bool:
        # A live lease keeps its record even if the wall clock has leapt past its retention.
        return self._clocks.wall() < row.expires_at or (row.outcome is None and self._lease_left(row) > 0.0)

    def _lease_left(self, row: _Row) -> float:
        if row.boot != self._clocks.boot_id:
            return min(row.expires_at - row.retention - self._clocks.wall(), 0.0)
        return row.lease_until - self._clocks.boot()

    def _record(self, key: StorageKey, row: _Row) -> Record:
        now = self._clocks.wall()
        running = row.completed_at is None
        return Record(
            key=key,
            state=State.RUNNING if running else State.COMPLETED,
            fingerprint=row.fingerprint,
            owner=row.owner,
            attempt=row.attempt,
            fence=row.fence,
            outcome=row.outcome,
            lease_left=self._lease_left(row) if running else 0.0,
            age=0.0 if row.completed_at is None else max(now - row.completed_at, 0.0),
            expires_in=row.expires_at - now,
        )
