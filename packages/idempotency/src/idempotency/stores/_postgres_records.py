"""
How a record is kept in PostgreSQL, without any I/O: the table, the statements, and what their rows mean.

Every statement judges by `clock_timestamp()`, read after it holds the row: `now()` is the start of the transaction,
and may be long past. Each call of the store is one statement, so it needs no session and works behind a pooler of
transactions.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

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

__all__ = [
    "SWEEP",
    "TRIES",
    "Statements",
    "acquire_values",
    "claim_values",
    "complete_values",
    "read_acquired",
    "read_record",
]

TRIES = 3
"""How often a call is tried: after a restart every connection of a pool is dead; of two in a deadlock one goes on."""

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
    CHECK ((outcome IS NULL) = (completed_at IS NULL))
);
CREATE INDEX IF NOT EXISTS {plain}_expires_at ON {table} (expires_at);
CREATE SEQUENCE IF NOT EXISTS {table}_fence;
"""

# IF NOT EXISTS does not keep two processes that start at once from colliding.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('{table}', 1));"

# One statement, and one instant at which it takes effect:
# - what nobody can change now (completed, or under another's lease) is answered as this statement's snapshot has it,
#   without a lock;
# - everything else is decided on the locked, latest version of the row, and the row that results is the answer. A
#   lapsed claim that may not be taken over is written back as it was.
# The advisory lock makes the fences of one key rise in the order of its grants (R9): two statements could otherwise
# draw their numbers in one order and insert, or take over, in the other. It ends with the statement.
_ACQUIRE = """
WITH standing AS MATERIALIZED (
    SELECT r.*, c.now
    FROM {table} AS r, LATERAL (SELECT clock_timestamp() AS now WHERE r.key IS NOT NULL OFFSET 0) AS c
    WHERE r.key = %(key)s AND r.expires_at > c.now
        AND (r.outcome IS NOT NULL OR (r.lease_until > c.now AND r.owner <> %(owner)s))
), written AS (
    INSERT INTO {table} AS r (key, fingerprint, owner, attempt, fence, lease_until, retention, expires_at)
    SELECT %(key)s, %(fingerprint)s, %(owner)s, 1, c.fence, c.now + l.lease, %(retention)s,
        c.now + l.lease + l.retention
    FROM (
        SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))::text AS locked,
            make_interval(secs => %(lease)s) AS lease, make_interval(secs => %(retention)s) AS retention
        OFFSET 0
    ) AS l, LATERAL (
        SELECT clock_timestamp() AS now, nextval('{table}_fence') AS fence WHERE l.locked IS NOT NULL OFFSET 0
    ) AS c
    WHERE NOT EXISTS (SELECT FROM standing)
    ON CONFLICT (key) DO UPDATE
    SET (fingerprint, owner, attempt, fence, lease_until, retention, completed_at, outcome, expires_at) = (
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
                ELSE v.lease_until + make_interval(secs => v.retention) END
        FROM (
            SELECT j.verdict,
                CASE j.verdict WHEN 'kept' THEN r.lease_until
                    WHEN 'ours' THEN greatest(r.lease_until, j.now + make_interval(secs => %(lease)s))
                    ELSE j.now + make_interval(secs => %(lease)s) END AS lease_until,
                CASE WHEN j.verdict IN ('kept', 'ours') THEN r.retention ELSE excluded.retention END AS retention
            FROM (
                SELECT c.now, CASE
                    WHEN r.expires_at <= c.now THEN 'gone'
                    WHEN r.outcome IS NOT NULL THEN 'kept'
                    WHEN r.owner = excluded.owner THEN 'ours'
                    WHEN r.lease_until > c.now THEN 'kept'
                    WHEN %(takeover)s AND r.fingerprint = excluded.fingerprint THEN 'lapsed'
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
    extract(epoch FROM now - completed_at)::float8,
    extract(epoch FROM expires_at - now)::float8"""

# The row is locked first, in a step of its own; what follows reads the clock, so it is read after the lock.
_MINE = """
mine AS MATERIALIZED (
    SELECT key, outcome IS NOT NULL AS done, expires_at FROM {table}
    WHERE key = %(key)s AND owner = %(owner)s FOR UPDATE
), live AS MATERIALIZED (
    SELECT key, done FROM mine WHERE expires_at > clock_timestamp()
)"""

_RENEW = """
WITH {mine}
UPDATE {table} AS r SET (lease_until, expires_at) = (
    SELECT v.until, v.until + make_interval(secs => r.retention)
    FROM (SELECT greatest(r.lease_until, clock_timestamp() + make_interval(secs => %(lease)s)) AS until OFFSET 0) AS v
) FROM live WHERE r.key = live.key AND NOT live.done
RETURNING true
"""

_COMPLETE = """
WITH {mine}, written AS (
    UPDATE {table} AS r SET (outcome, completed_at, expires_at) = (
        SELECT %(outcome)s::bytea, c.now, c.now + make_interval(secs => %(retention)s)
        FROM (SELECT clock_timestamp() AS now OFFSET 0) AS c
    ) FROM live WHERE r.key = live.key AND NOT live.done
), swept AS (
    DELETE FROM {table} WHERE key IN (
        SELECT key FROM {table} WHERE expires_at <= statement_timestamp() AND key <> %(key)s
        ORDER BY expires_at LIMIT %(sweep)s FOR UPDATE SKIP LOCKED
    )
)
SELECT true FROM live
"""

_RELEASE = """
WITH {mine}
DELETE FROM {table} AS r USING live WHERE r.key = live.key AND NOT live.done
RETURNING true
"""

_GET = """
SELECT {columns} FROM (
    SELECT r.*, c.now FROM {table} AS r, (SELECT clock_timestamp() AS now OFFSET 0) AS c WHERE r.key = %(key)s
) AS r WHERE expires_at > now
"""

_PURGE = """
WITH gone AS (
    DELETE FROM {table} WHERE key IN (
        SELECT key FROM {table} WHERE expires_at <= statement_timestamp()
        ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ) RETURNING 1
)
SELECT count(*) FROM gone
"""

_SCAN = """
SELECT {columns} FROM (
    SELECT r.*, c.now FROM {table} AS r, (SELECT clock_timestamp() AS now OFFSET 0) AS c
    WHERE r.key > %(after)s ORDER BY r.key LIMIT %(limit)s
) AS r
"""

_FORGET = """
DELETE FROM {table} WHERE key = %(key)s RETURNING expires_at > clock_timestamp()
"""


class Statements(NamedTuple):
    """The statements for one table; parameters by name, durations in seconds."""

    schema: str
    create: str
    acquire: str
    renew: str
    complete: str
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
        plain = table.rpartition(".")[2]
        mine = _MINE.format(table=table)

        def filled(statement: str) -> str:
            return statement.format(table=table, plain=plain, columns=_COLUMNS, mine=mine)

        return cls(
            *map(
                filled,
                (
                    _SCHEMA,
                    _LOCK + _SCHEMA,
                    _ACQUIRE,
                    _RENEW,
                    _COMPLETE,
                    _RELEASE,
                    _GET,
                    _PURGE,
                    _SCAN,
                    _FORGET,
                ),
            )
        )


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
    """The parameters that every write of a claim has."""
    return {"key": claim.key, "owner": claim.owner}


def complete_values(claim: Claim, outcome: bytes, retention: float, *, sweep: int) -> dict[str, Any]:
    """
    The parameters of `complete`; *sweep* is how many expired rows to delete with it.

    Raises:
        ValueError: *outcome* is empty: a completed record would look like one that has none.
    """
    if not outcome:
        raise ValueError("an outcome must not be empty")
    return claim_values(claim) | {"outcome": outcome, "retention": retention, "sweep": sweep}


def read_acquired(row: tuple[Any, ...], key: StorageKey, owner: Owner) -> Reply:
    """What `acquire` was answered."""
    _, fingerprint, holder, attempt, fence, outcome, lease_left, age, expires_in = row
    if outcome is not None:
        return Completed(Fingerprint(bytes(fingerprint)), bytes(outcome), max(age, 0.0), max(expires_in, 0.0))
    if bytes(holder) == owner:
        return Acquired(Claim(key, owner, attempt, fence))
    return Running(Fingerprint(bytes(fingerprint)), max(lease_left, 0.0))


def read_record(row: tuple[Any, ...]) -> Record:
    """A row as a record."""
    key, fingerprint, owner, attempt, fence, outcome, lease_left, age, expires_in = row
    running = outcome is None
    return Record(
        key=StorageKey(key),
        state=State.RUNNING if running else State.COMPLETED,
        fingerprint=Fingerprint(bytes(fingerprint)),
        owner=Owner(bytes(owner)),
        attempt=attempt,
        fence=fence,
        outcome=None if running else bytes(outcome),
        lease_left=lease_left if running else 0.0,
        age=0.0 if running else max(age, 0.0),  # below 0: the server's clock was set back
        expires_in=expires_in,
    )
