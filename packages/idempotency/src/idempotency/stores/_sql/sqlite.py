"""
The store's operations in SQLite, independent of the driver that executes the statements.

Each write is one transaction that holds the file's write lock from its first statement, so no other writer comes in
between. Leases are measured in time since boot, which setting the wall clock does not change; a lease from an earlier
boot has lapsed. Retention is in wall time, which continues across reboots.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from idempotency._core.errors import CorruptRecord, StoreError, StoreUnavailable, UnknownRecordVersion
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
    key_id,
)
from idempotency.store import Page
from idempotency.stores._sql.identifiers import quoted
from idempotency.stores._sql.steps import Begin, Query, Steps

__all__ = ["Clocks", "SqliteRecords"]

_VERSION = 1
_MAX_ATTEMPT = 2**31
_SWEEP = 2  # expired rows deleted by each complete: more than it adds, so the file stops growing under load
_TABLE = re.compile(r"(?!sqlite_)[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII | re.IGNORECASE)


class Clocks(NamedTuple):
    """The id of this boot, a clock with the seconds since boot, and the wall clock."""

    boot_id: bytes
    boot: Callable[[], float]
    wall: Callable[[], float]

    @classmethod
    def of_this_machine(cls) -> Clocks:
        """On Linux a clock that also counts suspended time, and the id of the boot; elsewhere wall time for both."""
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
# As expressions, because converters that an application registered are applied to plain columns.
_VALUES = ", ".join(f"+{name}" for name in _Row._fields)
_PLACES = ", ".join(f"%({name})s" for name in _Row._fields)
_HEAD = (int, bytes, bytes, int, int, bytes, float, float, float)
_SHAPES = {(*_HEAD, NoneType, NoneType), (*_HEAD, float, bytes)}


class SqliteRecords:
    """
    A store's operations on one table, as steps for the code that has the connection.

    Args:
        table: A plain SQL identifier.
    Raises:
        ValueError: *table* is not one.
    """

    backend = "sqlite"

    def __init__(self, table: str, clocks: Clocks | None = None) -> None:
        if not _TABLE.fullmatch(table):
            raise ValueError(f"table must be a plain SQL identifier of at most 63 characters, not {table!r}")
        self.table = table
        self._clocks = Clocks.of_this_machine() if clocks is None else clocks
        self._quoted = table = quoted(self.table)
        self._quoted_fence = fence = quoted(f"{self.table}_fence")
        # A write that changes nothing still takes the write lock.
        self._lock = f"UPDATE {fence} SET last = last WHERE 0"  # noqa: S608 - the name is checked above
        self._select = f"SELECT {_VALUES} FROM {table} WHERE key = %(key)s"  # noqa: S608
        self._fence = f"UPDATE {fence} SET last = max(last + 1, %(now)s) RETURNING last"  # noqa: S608
        self._grant = f"INSERT OR REPLACE INTO {table} (key, {_COLUMNS}) VALUES (%(key)s, {_PLACES})"  # noqa: S608
        self._push = (
            f"UPDATE {table} SET boot = %(boot)s, lease_until = %(until)s, expires_at = %(expires_at)s "  # noqa: S608
            "WHERE key = %(key)s"
        )
        self._settle = (
            f"UPDATE {table} SET outcome = %(outcome)s, completed_at = %(now)s, expires_at = %(expires_at)s "  # noqa: S608
            "WHERE key = %(key)s"
        )
        self._delete = f"DELETE FROM {table} WHERE key = %(key)s"  # noqa: S608
        self._page = (
            f"SELECT CAST(key AS BLOB), {_VALUES} FROM {table} WHERE typeof(key) = 'text' "  # noqa: S608
            "AND key > CAST(%(after)s AS TEXT) ORDER BY key LIMIT %(limit)s"
        )
        self._expired = (
            f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} "  # noqa: S608
            "WHERE expires_at <= %(wall)s AND version = %(version)s "
            "AND (outcome IS NOT NULL OR boot <> %(boot_id)s OR lease_until <= %(boot)s) LIMIT %(limit)s)"
        )

    def schema(self) -> tuple[str, ...]:
        """The statements that create the table; they change nothing if it exists."""
        index = quoted(f"{self.table}_expires_at")
        return (
            f"CREATE TABLE IF NOT EXISTS {self._quoted} (key TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL, "
            "fingerprint BLOB NOT NULL, owner BLOB NOT NULL, attempt INTEGER NOT NULL, fence INTEGER NOT NULL, "
            "boot BLOB NOT NULL, lease_until REAL NOT NULL, retention REAL NOT NULL, expires_at REAL NOT NULL, "
            "completed_at REAL, outcome BLOB)",
            f"CREATE INDEX IF NOT EXISTS {index} ON {self._quoted} (expires_at)",
            f"CREATE TABLE IF NOT EXISTS {self._quoted_fence} (last INTEGER NOT NULL)",
            f"INSERT INTO {self._quoted_fence} SELECT 0 "  # noqa: S608
            f"WHERE NOT EXISTS (SELECT 1 FROM {self._quoted_fence})",
        )

    def create(self) -> Steps[None]:
        """Create the missing tables. The fence has a separate table, so that emptying the other cannot lower it."""
        known = yield Query(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN (%(table)s, %(fence)s)",
            {"table": self.table, "fence": f"{self.table}_fence"},
        )
        if known.rows != [(2,)]:
            yield Begin()
            for statement in self.schema():
                yield Query(statement, {})
        try:
            yield from self._load(StorageKey(""))
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"the table {self.table} does not have the columns of this store; give the store another table"
            ) from error

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
        """Rules R1 and R2. Answers from a plain read if nothing has to be written: in WAL mode readers never wait."""
        found = self._standing_reply((yield from self._load(key)), fingerprint, owner, takeover)
        if found is not None:
            return found
        yield self._begin()
        row = yield from self._load(key)  # again, under the write lock
        reply: Reply | None = self._standing_reply(row, fingerprint, owner, takeover)
        if reply is None:
            reply = yield from self._claim(key, row, fingerprint, owner, lease, retention)
        return reply

    def renew(self, claim: Claim, *, lease: float) -> Steps[bool]:
        """Rule R4."""
        yield self._begin()
        row = yield from self._held(claim)
        if row is not None:
            yield from self._extend(claim.key, row, lease)
        return row is not None

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> Steps[bool]:
        """Rule R3; deletes a few expired records in the same transaction."""
        yield self._begin()
        done = yield from self._write_outcome(claim, outcome, retention)
        if done:
            yield from self._sweep(_SWEEP)
        return done

    def complete_in(self, _caller: object, claim: Claim, outcome: bytes, *, retention: float) -> Steps[bool]:
        """
        Rule R3 in a transaction that the caller began and will end; False if the outcome is already recorded.

        The write lock is taken first: SQLite then refuses a transaction whose snapshot is out of date
        (SQLITE_BUSY_SNAPSHOT), before the claim is read from that snapshot.
        """
        yield self._begin()
        if (yield from self._held(claim)) is None:
            return False
        return (yield from self._write_outcome(claim, outcome, retention))

    def release(self, claim: Claim) -> Steps[bool]:
        """Rule R5."""
        yield self._begin()
        held = (yield from self._held(claim)) is not None
        if held:
            yield Query(self._delete, {"key": claim.key})
        return held

    def get(self, key: StorageKey) -> Steps[Record | None]:
        """The current record."""
        row = yield from self._load(key)
        return None if row is None else self._record(key, row)

    def forget(self, key: StorageKey) -> Steps[bool]:
        """Delete a record in any state."""
        yield self._begin()
        deleted = yield Query(self._delete, {"key": key})
        return deleted.changed > 0

    def purge(self, limit: int) -> Steps[int]:
        """Delete at most *limit* expired records."""
        yield self._begin()
        return (yield from self._sweep(limit))

    def scan(self, limit: int, cursor: str | None) -> Steps[Page]:
        """One page in key order, without unreadable rows; `get` says what is wrong with a row."""
        # As bytes, because another program may have written a key that is not UTF-8.
        after = (cursor or "").encode("utf-8", "surrogateescape")
        rows = (yield Query(self._page, {"after": after, "limit": limit})).rows
        rows = [(StorageKey(bytes(name).decode("utf-8", "surrogateescape")), *row) for name, *row in rows]
        records = []
        for key, *columns in rows:
            try:
                row = self._read(key, tuple(columns))
            except (CorruptRecord, UnknownRecordVersion):
                continue
            if self._alive(row):
                records.append(self._record(key, row))
        return Page(tuple(records), rows[-1][0] if len(rows) == limit else None)

    def _begin(self) -> Begin:
        return Begin(Query(self._lock, {}))

    def _standing_reply(
        self, row: _Row | None, fingerprint: Fingerprint, owner: Owner, takeover: bool
    ) -> Running | Completed | None:
        """The reply if the record stays unchanged; None if this owner gets the claim (R1, R2)."""
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
        key: StorageKey,
        row: _Row | None,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
    ) -> Steps[Acquired]:
        if row is not None and row.owner == owner:
            yield from self._extend(key, row, lease)
            return Acquired(Claim(key, owner, row.attempt, row.fence))
        attempt = 1 if row is None else row.attempt + 1
        boot_id, boot, wall = self._clocks.boot_id, self._clocks.boot(), self._clocks.wall()
        # At least the wall time in microseconds, so that the fence rises even if the whole file was lost (R9).
        found = (yield Query(self._fence, {"now": int(wall * 1_000_000)})).rows
        if not found:
            raise StoreUnavailable(
                f"the counter in {self.table}_fence is gone; restore it or use another table"
            )
        fence = found[0][0]
        if type(fence) is not int:  # above 2**63 SQLite uses floats, which no longer grow by 1
            raise CorruptRecord(
                f"the counter in {self.table}_fence is damaged; set it to the highest fence in use"
            )
        granted = _Row(
            version=_VERSION,
            fingerprint=fingerprint,
            owner=owner,
            attempt=attempt,
            fence=fence,
            boot=boot_id,
            lease_until=boot + lease,
            retention=retention,
            expires_at=wall + lease + retention,
            completed_at=None,
            outcome=None,
        )
        yield Query(self._grant, {"key": key, **granted._asdict()})
        return Acquired(Claim(key, owner, attempt, fence))

    def _extend(self, key: StorageKey, row: _Row, lease: float) -> Steps[None]:
        until = self._clocks.boot() + lease
        if row.boot == self._clocks.boot_id:
            until = max(until, row.lease_until)  # R4
        expires_at = max(row.expires_at, self._clocks.wall() + lease + row.retention)
        yield Query(
            self._push, {"boot": self._clocks.boot_id, "until": until, "expires_at": expires_at, "key": key}
        )

    def _write_outcome(self, claim: Claim, outcome: bytes, retention: float) -> Steps[bool]:
        row = yield from self._load(claim.key)
        if row is None or row.owner != claim.owner:
            return False
        if row.outcome is None:
            now = self._clocks.wall()
            values: dict[str, Any] = {"outcome": outcome, "now": now, "expires_at": now + retention}
            yield Query(self._settle, values | {"key": claim.key})
        return True

    def _held(self, claim: Claim) -> Steps[_Row | None]:
        row = yield from self._load(claim.key)
        return row if row is not None and row.owner == claim.owner and row.outcome is None else None

    def _sweep(self, limit: int) -> Steps[int]:
        clocks = self._clocks
        values = {
            "wall": clocks.wall(),
            "version": _VERSION,
            "boot_id": clocks.boot_id,
            "boot": clocks.boot(),
        }
        return (yield Query(self._expired, values | {"limit": limit})).changed

    def _load(self, key: StorageKey) -> Steps[_Row | None]:
        rows = (yield Query(self._select, {"key": key})).rows
        if not rows:
            return None
        row = self._read(key, rows[0])
        return row if self._alive(row) else None

    def _read(self, key: StorageKey, columns: tuple[object, ...]) -> _Row:
        if columns[0] != _VERSION:
            raise UnknownRecordVersion(
                f"record {key_id(key)} has another version than {_VERSION}, which this library reads; "
                "finish the upgrade of all processes"
            )
        if tuple(map(type, columns)) not in _SHAPES:
            raise CorruptRecord(f"record {key_id(key)} cannot be read; look at it and forget it by hand")
        row = _Row._make(columns)
        if (
            not (0 < row.attempt < _MAX_ATTEMPT and row.fence >= 0)
            or check_seconds(row.lease_until, row.retention, row.expires_at, row.completed_at or 0.0)
            is not None
        ):
            raise CorruptRecord(
                f"record {key_id(key)} has a number that no store writes; look at it and forget it by hand"
            )
        return row

    def _alive(self, row: _Row) -> bool:
        # A record with a live lease stays, even if the wall clock was set past its expiry.
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
            age=max(now - (row.fence / 1e6 if row.completed_at is None else row.completed_at), 0.0),
            expires_in=row.expires_at - now,
        )
