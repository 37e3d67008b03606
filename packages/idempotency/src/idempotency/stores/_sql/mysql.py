"""
The store's operations in MySQL (8.0 or newer) or MariaDB (10.6 or newer).

A write first inserts the row of the key if it is missing, which locks the row; only then it reads the clock and
decides. So the writes of one key run one after another, and each reads the clock after the previous one took effect. A
row outlives its record: a released or forgotten record leaves its fence in the row for the retention, so that the next
fence is larger (R9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from idempotency._core.errors import CorruptRecord, StoreError
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
from idempotency.store import Page
from idempotency.stores._sql.identifiers import quoted
from idempotency.stores._sql.steps import Begin, Query, Steps

__all__ = ["MysqlRecords"]

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,50}(\.[a-z_][a-z0-9_]{0,50})?")
_SWEEP = 2  # expired rows that a completion deletes: more than it adds, so that the table shrinks under load
_PURGE_BATCH = 500
_LARGE = 1_000_000  # bytes; the smallest max_allowed_packet in use is 1 MiB
_GONE_LIFE = 86_400.0  # s that a fence is kept if its record has no retention

# Microseconds since 1970. UTC_TIMESTAMP is the start of the statement. The time since then, which may include a wait
# for a lock, is added from SYSDATE. SYSDATE is in the session's time zone: its wall clock gains an hour when summer
# time begins, and UNIX_TIMESTAMP can gain one in the repeated hour in autumn. The smaller of both differences is never
# too large, so a live lease never looks lapsed.
_NOW = (
    "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    " + GREATEST(LEAST(TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)),"
    " (UNIX_TIMESTAMP(SYSDATE(6)) - UNIX_TIMESTAMP(NOW(6))) * 1000000), 0))"
)

# Bytes, not text: they are compared exactly, including trailing blanks.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS {table} (
    record_key   VARBINARY(2048) NOT NULL PRIMARY KEY,
    fingerprint  VARBINARY(255)  NOT NULL,
    owner        VARBINARY(255)  NOT NULL,
    attempt      INT             NOT NULL,
    fence        BIGINT          NOT NULL,
    lease_until  BIGINT          NOT NULL,
    retention    BIGINT          NOT NULL,
    completed_at BIGINT          NULL,
    outcome      LONGBLOB        NULL,
    expires_at   BIGINT          NOT NULL,
    INDEX {index} (expires_at)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC
"""


class _Row(NamedTuple):
    """Times in microseconds since 1970, durations in microseconds; an empty owner means that there is no record."""

    fingerprint: bytes
    owner: bytes
    attempt: int
    fence: int
    lease_until: int
    retention: int
    completed_at: int | None
    outcome: bytes | None
    expires_at: int

    def alive(self, now: int) -> bool:
        return bool(self.owner) and self.expires_at > now


_COLUMNS = ", ".join(_Row._fields)


class MysqlRecords:
    """
    A store's operations on one table, as steps for the code that has the connection.

    Args:
        table: A plain lower-case name, or database.name.
    Raises:
        ValueError: *table* is neither.
    """

    backend = "mysql"

    def __init__(self, table: str) -> None:
        if not _NAME.fullmatch(table):
            raise ValueError(f"table must be a plain lower-case name, or schema.name, not {table!r}")
        self.table = table
        self._quoted = table = quoted(table, "`")
        self._read = f"SELECT {_COLUMNS}, {_NOW} FROM {table} WHERE record_key = %(key)s"  # noqa: S608
        self._locked = f"{self._read} FOR UPDATE"
        # Not INSERT IGNORE: it takes a shared lock on an existing row, and two such locks deadlock when both upgrade.
        self._ensure = (
            f"INSERT INTO {table} (record_key, {_COLUMNS}) VALUES "  # noqa: S608
            "(%(key)s, '', '', 0, 0, 0, 0, NULL, NULL, 0) ON DUPLICATE KEY UPDATE attempt = attempt"
        )
        self._write = (
            f"UPDATE {table} SET "  # noqa: S608
            + ", ".join(f"{name} = %({name})s" for name in _Row._fields)
            + " WHERE record_key = %(key)s"
        )
        self._expired = (
            f"SELECT record_key FROM {table} WHERE expires_at <= %(now)s AND record_key <> %(key)s "  # noqa: S608
            "ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED"
        )
        self._clock = f"SELECT {_NOW}"
        self._page = (
            f"SELECT record_key, {_COLUMNS}, {_NOW} FROM {table} WHERE record_key > %(after)s "  # noqa: S608
            "ORDER BY record_key LIMIT %(limit)s"
        )

    def schema(self) -> tuple[str, ...]:
        """The statements that create the table; they change nothing if it exists."""
        index = quoted(f"{self.table.rpartition('.')[2]}_expires_at", "`")
        return (_SCHEMA.format(table=self._quoted, index=index),)

    def create(self) -> Steps[None]:
        """Create the table if it is missing; a role without CREATE may use an existing one."""
        schema, _, plain = self.table.rpartition(".")
        found = yield Query(
            "SELECT count(*) FROM information_schema.tables WHERE table_name = %(plain)s "
            "AND table_schema = CASE WHEN %(schema)s = '' THEN DATABASE() ELSE %(schema)s END",
            {"plain": plain, "schema": schema},
        )
        if not int(found.rows[0][0]):
            for statement in self.schema():
                yield Query(statement, {})

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
        """Rules R1 and R2. Answers from a plain read if nothing has to be written."""
        row, now = yield from self._look(key)
        found = _standing_reply(row, now, fingerprint, owner, takeover)
        if found is not None:
            return found
        yield Begin()
        yield Query(self._ensure, {"key": _bytes(key)})
        row, now = yield from self._hold(key)
        assert row is not None, "the row exists and is locked"
        reply = _standing_reply(row, now, fingerprint, owner, takeover)
        if reply is not None:
            return reply
        if row.alive(now) and row.owner == owner:
            row = _extended(row, now, lease)
        else:
            row = _Row(
                fingerprint=fingerprint,
                owner=owner,
                attempt=row.attempt + 1 if row.alive(now) else 1,
                fence=max(now, row.fence + 1),
                lease_until=now + _us(lease),
                retention=_us(retention),
                completed_at=None,
                outcome=None,
                expires_at=now + _us(lease) + _us(retention),
            )
        yield from self._put(key, row)
        return Acquired(Claim(key, owner, row.attempt, row.fence))

    def renew(self, claim: Claim, *, lease: float) -> Steps[bool]:
        """Rule R4."""
        yield Begin()
        row, now = yield from self._held(claim)
        if row is None or row.outcome is not None:
            return False
        yield from self._put(claim.key, _extended(row, now, lease))
        return True

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> Steps[bool]:
        """Rule R3; deletes a few expired records in the same transaction."""
        yield Begin()
        done = yield from self._settle(claim, outcome, retention)
        if done:
            yield from self._delete_expired(_SWEEP, but=claim.key)
        return done

    def complete_in(self, _caller: object, claim: Claim, outcome: bytes, *, retention: float) -> Steps[bool]:
        """
        Rule R3 in a transaction that the caller began and will end; False if the outcome is already recorded.

        In every isolation level of InnoDB a locking read sees the latest committed row, so a snapshot older than the
        claim does no harm.
        """
        yield Begin()
        row, _ = yield from self._held(claim)
        if row is None or row.outcome is not None:
            return False
        return (yield from self._settle(claim, outcome, retention))

    def release(self, claim: Claim) -> Steps[bool]:
        """Rule R5."""
        yield Begin()
        row, now = yield from self._held(claim)
        if row is None or row.outcome is not None:
            return False
        yield from self._put(claim.key, _gone(row, now))
        return True

    def get(self, key: StorageKey) -> Steps[Record | None]:
        """The current record."""
        row, now = yield from self._look(key)
        return _record(key, row, now) if row is not None and row.alive(now) else None

    def forget(self, key: StorageKey) -> Steps[bool]:
        """Delete a record in any state; of one that cannot be read the fence is not kept."""
        yield Begin()
        try:
            row, now = yield from self._hold(key)
        except CorruptRecord:
            yield Query(f"DELETE FROM {self._quoted} WHERE record_key = %(key)s", {"key": _bytes(key)})  # noqa: S608
            return True
        if row is None or not row.owner:
            return False
        yield from self._put(key, _gone(row, now))
        return row.alive(now)

    def purge(self, limit: int) -> Steps[int]:
        """Delete at most *limit* expired rows."""
        deleted = 0
        while deleted < limit:
            yield Begin()
            batch = min(limit - deleted, _PURGE_BATCH)
            found = yield from self._delete_expired(batch, but=StorageKey(""))
            deleted += found
            if found < batch:
                break
        return deleted

    def scan(self, limit: int, cursor: str | None) -> Steps[Page]:
        """One page in key order, without records that cannot be read."""
        rows = (yield Query(self._page, {"after": _bytes(cursor or ""), "limit": limit})).rows
        records = []
        for key, *columns, now in rows:
            with suppress(CorruptRecord):
                row = _row(columns)
                if row.alive(int(now)):
                    records.append(_record(StorageKey(_text(key)), row, int(now)))
        return Page(tuple(records), _text(rows[-1][0]) if len(rows) == limit else None)

    def _look(self, key: StorageKey) -> Steps[tuple[_Row | None, int]]:
        return _only((yield Query(self._read, {"key": _bytes(key)})).rows)

    def _hold(self, key: StorageKey) -> Steps[tuple[_Row | None, int]]:
        """The latest row, locked until the transaction ends."""
        return _only((yield Query(self._locked, {"key": _bytes(key)})).rows)

    def _held(self, claim: Claim) -> Steps[tuple[_Row | None, int]]:
        """The row if its record is the owner's."""
        row, now = yield from self._hold(claim.key)
        return (row if row is not None and row.alive(now) and row.owner == claim.owner else None), now

    def _settle(self, claim: Claim, outcome: bytes, retention: float) -> Steps[bool]:
        if not outcome:
            raise ValueError("an outcome must not be empty")
        row, now = yield from self._held(claim)
        if row is None:
            return False
        if row.outcome is None:
            yield from self._check_size(outcome)
            done = row._replace(outcome=outcome, completed_at=now, expires_at=now + _us(retention))
            yield from self._put(claim.key, done)
        return True

    def _check_size(self, outcome: bytes) -> Steps[None]:
        """Refuse an outcome for which the server would close the connection; that would look like a transient error."""
        if len(outcome) < _LARGE:
            return
        ((limit,),) = (yield Query("SELECT @@max_allowed_packet", {})).rows
        if len(outcome) >= int(limit):
            raise StoreError(
                f"MySQL: nothing was written, because an outcome of {len(outcome)} bytes is larger than the server's "
                f"max_allowed_packet, {limit}; raise that, or keep a smaller outcome"
            )

    def _put(self, key: StorageKey, row: _Row) -> Steps[None]:
        values: Mapping[str, Any] = {"key": _bytes(key), **row._asdict()}
        yield Query(self._write, values)

    def _delete_expired(self, limit: int, *, but: StorageKey) -> Steps[int]:
        """Delete expired rows that nobody has locked, by key: deleting a range would also lock its gaps."""
        ((now,),) = (yield Query(self._clock, {})).rows
        values = {"now": int(now), "limit": limit, "key": but.encode()}
        keys = [key for (key,) in (yield Query(self._expired, values)).rows]
        if not keys:
            return 0
        named = {f"k{number}": key for number, key in enumerate(keys)}
        places = ", ".join(f"%({name})s" for name in named)
        yield Query(f"DELETE FROM {self._quoted} WHERE record_key IN ({places})", named)  # noqa: S608
        return len(keys)


def _only(rows: list[tuple[Any, ...]]) -> tuple[_Row | None, int]:
    if not rows:
        return None, 0
    *columns, now = rows[0]
    return _row(columns), int(now)


def _row(columns: list[Any]) -> _Row:
    fingerprint, owner, attempt, fence, lease_until, retention, completed_at, outcome, expires_at = columns
    instants = (fence, lease_until, retention, expires_at, completed_at or 0)  # a fence is a time at first
    wrong = check_seconds(*(int(instant) / 1e6 for instant in instants))
    if wrong is not None:
        raise wrong
    return _Row(
        bytes(fingerprint),
        bytes(owner),
        int(attempt),
        int(fence),
        int(lease_until),
        int(retention),
        None if completed_at is None else int(completed_at),
        None if outcome is None else bytes(outcome),
        int(expires_at),
    )


def _standing_reply(
    row: _Row | None, now: int, fingerprint: Fingerprint, owner: Owner, takeover: bool
) -> Running | Completed | None:
    """The reply if the record stays unchanged; None if this owner gets the claim (R1, R2)."""
    if row is None or not row.alive(now):
        return None
    if row.outcome is not None and row.completed_at is not None:
        age, left = max(now - row.completed_at, 0), row.expires_at - now
        return Completed(Fingerprint(row.fingerprint), row.outcome, age / 1e6, left / 1e6)
    if row.owner == owner:
        return None
    if row.lease_until > now:
        return Running(Fingerprint(row.fingerprint), (row.lease_until - now) / 1e6)
    if takeover and row.fingerprint == fingerprint:
        return None
    return Running(Fingerprint(row.fingerprint), 0.0)


def _extended(row: _Row, now: int, lease: float) -> _Row:
    until = max(row.lease_until, now + _us(lease))  # R4
    return row._replace(lease_until=until, expires_at=until + row.retention)


def _gone(row: _Row, now: int) -> _Row:
    """The row without its record: the fence is kept for the retention."""
    keep = row.retention or _us(_GONE_LIFE)
    return row._replace(owner=b"", outcome=None, completed_at=None, expires_at=now + keep)


def _record(key: StorageKey, row: _Row, now: int) -> Record:
    running = row.completed_at is None
    return Record(
        key=key,
        state=State.RUNNING if running else State.COMPLETED,
        fingerprint=Fingerprint(row.fingerprint),
        owner=Owner(row.owner),
        attempt=row.attempt,
        fence=row.fence,
        outcome=row.outcome,
        lease_left=(row.lease_until - now) / 1e6 if running else 0.0,
        age=max(now - (row.fence if row.completed_at is None else row.completed_at), 0) / 1e6,
        expires_in=(row.expires_at - now) / 1e6,
    )


def _text(key: Any) -> str:
    """A key as text; another program may have written one that is not UTF-8."""
    return bytes(key).decode("utf-8", "surrogateescape")


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
