"""What a failure of PostgreSQL means to a caller, and what to do about it."""

from __future__ import annotations

import psycopg
import psycopg_pool
from psycopg import errors

from idempotency._core.errors import StoreUnavailable

__all__ = ["is_gone", "is_transient", "meaning_of", "too_late"]

_UNPREPARED = (
    "the connection lost, or never had, a prepared statement, as behind a pooler of transactions; give the pool "
    'kwargs={"prepare_threshold": None}, or the URL prepare_threshold=none'
)
_ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (errors.UndefinedTable, "the store's table is missing; call create_schema() once, or run its SQL"),
    (errors.InvalidSchemaName, "the schema of the store's table is missing; create it"),
    (errors.InsufficientPrivilege, "this role may not use the store's table and sequence; grant it both"),
    (errors.ReadOnlySqlTransaction, "this server is a standby or read-only; connect to the primary"),
    (errors.DiskFull, "the server's disk is full"),
    (errors.TooManyConnections, "the server has no connection left; use a smaller pool, or a pooler"),
    (errors.InvalidPassword, "the server refused the password"),
    (errors.InvalidSqlStatementName, _UNPREPARED),
    (errors.DuplicatePreparedStatement, _UNPREPARED),
    (errors.ProtocolViolation, _UNPREPARED),  # it had another one of that name, of other parameters
    (errors.QueryCanceled, "the server cancelled the statement; look at its statement_timeout"),
    (
        psycopg_pool.PoolTimeout,
        "the pool had no connection in time; make it larger, or find out what holds them",
    ),
    (psycopg_pool.TooManyRequests, "too many callers wait for the pool; make it larger"),
    (psycopg_pool.PoolClosed, "the pool is not open; open it before the store is used"),
)


def meaning_of(error: psycopg.Error) -> StoreUnavailable:
    """The typed error for what the driver raised, without any text of the server's: that may quote a record."""
    for kind, advice in _ADVICE:
        if isinstance(error, kind):
            return StoreUnavailable(f"PostgreSQL: {advice}")
    code = error.sqlstate or type(error).__name__
    return StoreUnavailable(
        f"no answer from PostgreSQL ({code}); the call may or may not have taken effect, and may be repeated"
    )


def is_gone(error: psycopg.Error) -> bool:
    """Whether the connection is lost, which it may have been long before we used it: another may work."""
    if isinstance(error, (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed, psycopg_pool.TooManyRequests)):
        return False
    known = isinstance(error, tuple(kind for kind, _ in _ADVICE))
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) and not known


def is_transient(error: psycopg.Error) -> bool:
    """Whether another transaction was in the way: nothing has taken effect, and the next try may pass."""
    return isinstance(error, (errors.SerializationFailure, errors.DeadlockDetected))


def too_late(deadline: float) -> StoreUnavailable:
    """No answer within *deadline* seconds."""
    return StoreUnavailable(
        f"no answer from PostgreSQL within {deadline:g} s; the call may or may not have taken effect, "
        "and may be repeated"
    )
