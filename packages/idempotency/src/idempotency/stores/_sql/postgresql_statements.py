"""
PostgreSQL's table and statements, without any I/O; `postgresql_rows` has their parameters and rows.

Each call of the store is one statement, so it needs no session and works behind a transaction pooler. Each statement is
atomic in READ COMMITTED because of two locks and the moment when the clock is read:

- A statement that inserts or deletes a row holds the advisory lock of its key (`_KEY_LOCK`); one that updates a row
  holds the row lock. Both are held until the commit, so the writes of one key run one after another.
- A write reads `clock_timestamp()` after it has these locks, and does not wait between that and the write. So the
  writes of a key read the clock in the order in which they take effect, and a lease begins at a time when the caller
  could have the key. `now()` would be the start of the transaction, which may be long past after a wait.
- A read (a replay, a running duplicate) locks nothing. It uses the statement's snapshot and reads the clock after that;
  if the record has expired or lapsed by then, the statement continues as a write.
- A write takes effect at its commit, after it read the clock. Both are within the call; another call in between either
  waits for the lock or reads the old record.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from idempotency.stores._sql.identifiers import quoted

__all__ = ["PURGE_BATCH", "SWEEP", "Statements"]

PURGE_BATCH = 500
"""Rows that one statement of a purge deletes: each takes a slot in the server's lock table until the commit."""

SWEEP = 2
"""Expired rows that a completion deletes: more than it adds, so that the table shrinks under load."""

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,50}(\.[a-z_][a-z0-9_]{0,50})?")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS {table} (
    key          text COLLATE "C" PRIMARY KEY,
    fingerprint  bytea            NOT NULL,
    owner        bytea            NOT NULL,
    attempt      integer          NOT NULL,
    fence        bigint           NOT NULL,
    lease_until  timestamptz      NOT NULL,
    retention    double precision NOT NULL,  -- seconds after the lease, while it runs
    completed_at timestamptz,
    outcome      bytea,                      -- a JSON object: convert_from(outcome, 'UTF8')
    expires_at   timestamptz      NOT NULL,
    claimed_at   timestamptz      NOT NULL DEFAULT statement_timestamp(),  -- or taken over: for people alone
    CHECK ((outcome IS NULL) = (completed_at IS NULL))
);
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS claimed_at timestamptz NOT NULL DEFAULT statement_timestamp();
CREATE INDEX IF NOT EXISTS {plain_index} ON {table} (expires_at);
CREATE SEQUENCE IF NOT EXISTS {fence};
"""

# Whether everything exists already. A role that may use the table but not create it needs only this check.
_PRESENT = """
SELECT to_regclass('{table}') IS NOT NULL AND to_regclass('{fence}') IS NOT NULL
    AND to_regclass('{index}') IS NOT NULL
    AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('{table}') AND attname = 'claimed_at')
"""

# A lock, because two processes that run CREATE ... IF NOT EXISTS at once may still collide.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('{name}', 1));"

# Needed to order the fences (R9) and to hold a row that does not exist yet. Without it, two statements could draw their
# fences in one order and insert in the other; and a statement that found no row, but waited for another's delete, would
# insert long after it read the clock. Cast to text, because void cannot be compared.
_KEY_LOCK = "pg_advisory_xact_lock(hashtextextended(%(key)s, 0))::text"

# - A record that nobody can change now (completed, or under another owner's lease) is answered from the snapshot.
# - Everything else is decided on the locked, latest version of the row, and the resulting row is the answer. A lapsed
#   claim that may not be taken over is written back unchanged.
_ACQUIRE = """
WITH standing AS MATERIALIZED (
    SELECT r.*, c.now
    FROM {table} AS r, LATERAL (SELECT clock_timestamp() AS now WHERE r.key IS NOT NULL OFFSET 0) AS c
    WHERE r.key = %(key)s::text AND r.expires_at > c.now
        AND (r.outcome IS NOT NULL OR (r.lease_until > c.now AND r.owner <> %(owner)s::bytea))
), written AS (
    INSERT INTO {table} AS r
        (key, fingerprint, owner, attempt, fence, lease_until, retention, expires_at, claimed_at)
    SELECT %(key)s::text, %(fingerprint)s::bytea, %(owner)s::bytea, 1, c.fence, c.now + l.lease,
        %(retention)s::float8, c.now + l.lease + l.retention, c.now
    FROM (
        SELECT {key_lock} AS locked,
            make_interval(secs => %(lease)s::float8) AS lease, make_interval(secs => %(retention)s::float8) AS retention
        OFFSET 0
    ) AS l, LATERAL (
        SELECT clock_timestamp() AS now, nextval('{fence}') AS fence WHERE l.locked IS NOT NULL OFFSET 0
    ) AS c
    WHERE NOT EXISTS (SELECT FROM standing)
    ON CONFLICT (key) DO UPDATE
    SET (fingerprint, owner, attempt, fence, lease_until, retention, completed_at, outcome, expires_at, claimed_at) = (
        SELECT
            CASE WHEN v.verdict = 'gone' THEN excluded.fingerprint ELSE r.fingerprint END,
            CASE WHEN v.verdict IN ('gone', 'lapsed') THEN excluded.owner ELSE r.owner END,
            CASE v.verdict WHEN 'gone' THEN 1 WHEN 'lapsed' THEN r.attempt + 1 ELSE r.attempt END,
            CASE WHEN v.verdict IN ('gone', 'lapsed') THEN excluded.fence ELSE r.fence END,
            v.lease_until,
            v.retention,
            CASE WHEN v.verdict = 'kept' THEN r.completed_at END,
            CASE WHEN v.verdict = 'kept' THEN r.outcome END,
            CASE WHEN v.verdict = 'kept' THEN r.expires_at
                ELSE v.lease_until + make_interval(secs => v.retention) END,
            CASE WHEN v.verdict IN ('gone', 'lapsed') THEN v.now ELSE r.claimed_at END
        FROM (
            SELECT j.verdict, j.now,
                CASE j.verdict WHEN 'kept' THEN r.lease_until
                    WHEN 'ours' THEN greatest(r.lease_until, j.now + make_interval(secs => %(lease)s::float8))
                    ELSE j.now + make_interval(secs => %(lease)s::float8) END AS lease_until,
                CASE WHEN j.verdict IN ('kept', 'ours') THEN r.retention ELSE excluded.retention END AS retention
            FROM (
                SELECT c.now, CASE
                    WHEN r.expires_at <= c.now THEN 'gone'
                    WHEN r.outcome IS NOT NULL THEN 'kept'
                    WHEN r.owner = excluded.owner THEN 'ours'
                    WHEN r.lease_until > c.now THEN 'kept'
                    WHEN %(takeover)s::boolean AND r.fingerprint = excluded.fingerprint THEN 'lapsed'
                    ELSE 'kept' END AS verdict
                FROM (SELECT clock_timestamp() AS now OFFSET 0) AS c  -- once: each mention would be another instant
                OFFSET 0
            ) AS j
            OFFSET 0
        ) AS v
    )
    RETURNING r.*, clock_timestamp() AS now
)
SELECT {columns} FROM (SELECT * FROM standing UNION ALL SELECT * FROM written) AS r
"""

_COLUMNS = """key, fingerprint, owner, attempt, fence, outcome,
    extract(epoch FROM lease_until - now)::float8,
    extract(epoch FROM now - coalesce(completed_at, claimed_at))::float8,
    extract(epoch FROM expires_at - now)::float8"""

# The row is locked first, in a separate step, so that the clock is read after the lock.
_MINE = """
mine AS MATERIALIZED (
    SELECT r.key, r.outcome IS NOT NULL AS done, r.expires_at FROM {table} AS r{locked}
    WHERE r.key = %(key)s::text AND r.owner = %(owner)s::bytea {after} FOR UPDATE OF r
), live AS MATERIALIZED (
    SELECT key, done FROM mine WHERE expires_at > clock_timestamp()
)"""

# For deletes: the lock of the key is taken before the row lock, as in acquire.
_LOCKED = "locked AS MATERIALIZED (SELECT {key_lock} AS key)"

_RENEW = """
WITH {mine}
UPDATE {table} AS r SET (lease_until, expires_at) = (
    SELECT v.until, v.until + make_interval(secs => r.retention)
    FROM (
        SELECT greatest(r.lease_until, clock_timestamp() + make_interval(secs => %(lease)s::float8)) AS until OFFSET 0
    ) AS v
) FROM live WHERE r.key = live.key AND NOT live.done
RETURNING true
"""

# Expired rows that nobody has locked. Locks are only tried: waiting while holding other rows could deadlock.
_SWEEP = """
DELETE FROM {table} WHERE key IN (
    SELECT key FROM (
        SELECT key FROM {table} WHERE expires_at <= statement_timestamp() {others}
        ORDER BY expires_at LIMIT %({limit})s FOR UPDATE SKIP LOCKED
    ) AS expired
    WHERE pg_try_advisory_xact_lock(hashtextextended(key, 0))
)
"""

_WRITE_OUTCOME = """
    UPDATE {table} AS r SET (outcome, completed_at, expires_at) = (
        SELECT %(outcome)s::bytea, c.now, c.now + make_interval(secs => %(retention)s::float8)
        FROM (SELECT clock_timestamp() AS now OFFSET 0) AS c
    ) FROM live WHERE r.key = live.key AND NOT live.done"""

_COMPLETE = """
WITH {mine}, written AS ({write_outcome}
), swept AS ({sweep})
SELECT true FROM live
"""

# In a transaction of the caller. It also returns what is needed to judge the result: whether the claim was held without
# an outcome, whether the row was seen at all, the isolation level, whether the row was written in a savepoint, and the
# fence of the row in the snapshot.
_COMPLETE_IN = """
WITH {mine}, written AS ({write_outcome}
    RETURNING r.xmin::text AS writer
)
SELECT EXISTS (SELECT FROM live WHERE NOT done), EXISTS (SELECT FROM mine), current_setting('transaction_isolation'),
    (SELECT writer <> mod(txid_current(), 4294967296)::text FROM written),
    (SELECT fence FROM {table} WHERE key = %(key)s::text)
"""

_RELEASE = """
WITH {locked}, {mine_locked}
DELETE FROM {table} AS r USING live WHERE r.key = live.key AND NOT live.done
RETURNING true
"""

_GET = """
SELECT {columns} FROM (
    SELECT r.*, c.now FROM {table} AS r, (SELECT clock_timestamp() AS now OFFSET 0) AS c WHERE r.key = %(key)s::text
) AS r WHERE expires_at > now
"""

_PURGE = """
WITH swept AS ({purge} RETURNING 1)
SELECT count(*) FROM swept
"""

_SCAN = """
SELECT {columns} FROM (
    SELECT r.*, c.now FROM {table} AS r, (SELECT clock_timestamp() AS now OFFSET 0) AS c
    WHERE r.key > %(after)s::text ORDER BY r.key LIMIT %(limit)s
) AS r
"""

_FORGET = """
WITH {locked}
DELETE FROM {table} AS r USING locked WHERE r.key = %(key)s::text AND locked.key IS NOT NULL
RETURNING r.expires_at > clock_timestamp()
"""


class Statements(NamedTuple):
    """The statements for one table; parameters by name, durations in seconds."""

    schema: str
    create: str
    present: str
    acquire: str
    renew: str
    complete: str
    complete_in: str
    release: str
    get: str
    purge: str
    scan: str
    forget: str

    @classmethod
    def for_table(cls, table: str) -> Statements:
        """
        The statements for *table*.

        Raises:
            ValueError: Not a plain name, or a schema and a name, in lower case.
        """
        if not _NAME.fullmatch(table):
            raise ValueError(f"table must be a plain lower-case name, or schema.name, not {table!r}")
        name, table = table, quoted(table)
        names = {
            "name": name,
            "table": table,
            "fence": quoted(f"{name}_fence"),
            "index": quoted(f"{name}_expires_at"),
            "plain_index": quoted(f"{name.rpartition('.')[2]}_expires_at"),
            "columns": _COLUMNS,
            "key_lock": _KEY_LOCK,
            "locked": _LOCKED.format(key_lock=_KEY_LOCK),
            "write_outcome": _WRITE_OUTCOME.format(table=table),
            "mine": _MINE.format(table=table, locked="", after=""),
            "mine_locked": _MINE.format(table=table, locked=", locked", after="AND locked.key IS NOT NULL"),
            "sweep": _SWEEP.format(table=table, limit="sweep", others="AND key <> %(key)s::text"),
            "purge": _SWEEP.format(table=table, limit="limit", others=""),
        }
        statements = (
            _SCHEMA,
            _LOCK + _SCHEMA,
            _PRESENT,
            _ACQUIRE,
            _RENEW,
            _COMPLETE,
            _COMPLETE_IN,
            _RELEASE,
            _GET,
            _PURGE,
            _SCAN,
            _FORGET,
        )
        return cls(*(statement.format(**names) for statement in statements))
