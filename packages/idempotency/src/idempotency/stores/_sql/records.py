"""Gives the SQL dialects one interface: their records, and the translation of their errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, TypeAlias

from idempotency._core.errors import IsolationConflict, StoreError, StoreUnavailable
from idempotency.stores._sql import postgresql_errors, sqlite_errors
from idempotency.stores._sql.mysql import MysqlRecords
from idempotency.stores._sql.postgresql_steps import PostgresRecords
from idempotency.stores._sql.sqlite import SqliteRecords

__all__ = ["SqlRecords", "conflict_of", "is_transient", "records_for", "to_store_error", "waited_in_vain"]

SqlRecords: TypeAlias = PostgresRecords | MysqlRecords | SqliteRecords
"""A store's operations on one table, as steps, with the same methods for each kind of database."""

_BACKENDS: Final[dict[str, Callable[[str], SqlRecords]]] = {
    "postgresql": PostgresRecords,
    "mysql": MysqlRecords,
    "mariadb": MysqlRecords,
    "sqlite": SqliteRecords,
}

# Numbers of MySQL's errors (its reference manual, appendix B).
_DEADLOCK, _LOCK_TIMEOUT, _CHANGED = 1213, 1205, 1020
# Without _LOCK_TIMEOUT: the caller has already waited for innodb_lock_wait_timeout, by default 50 s.
_MYSQL_TRANSIENT: Final = frozenset((_DEADLOCK, _CHANGED))
_MYSQL_ADVICE: Final = {
    1044: "this user may not use the store's database; grant it SELECT, INSERT, UPDATE and DELETE on the table",
    1045: "the server refused the user or the password",
    1142: "this user may not use the store's table; grant it SELECT, INSERT, UPDATE and DELETE on it",
    1040: "the server has no connection left; use a smaller pool",
    1114: "the server's disk is full",
    1146: "the store's table is missing; call create_schema() once, or run its SQL",
    1792: "this transaction is read-only; make the effect in one that may write",
    1290: "this server is read-only; connect to the primary",
    _LOCK_TIMEOUT: "another transaction locked the record's row for longer than innodb_lock_wait_timeout; look for a "
    "long transaction",
}
_MYSQL_PERMANENT: Final = {
    1153: "nothing was written, because the record is larger than the server's max_allowed_packet; raise that, or keep "
    "a smaller outcome",
    1665: "nothing was written, because the server's binlog_format is STATEMENT, which does not allow READ COMMITTED "
    "transactions; set it to ROW or MIXED",
}
# The client's errors for a lost connection; the server's 1153 is lost with it if a packet is too large.
_MYSQL_LOST: Final = frozenset((2006, 2013))
_MYSQL_HUNG_UP: Final = (
    "if the outcome is large, compare it with max_allowed_packet: the server closes the connection above that"
)
_PERMANENT_KINDS: Final = frozenset(("ProgrammingError", "NotSupportedError", "DataError", "IntegrityError"))


def records_for(dialect: str, table: str) -> SqlRecords:
    """
    The records of *table* in a database of *dialect*, named as in SQLAlchemy and Django.

    Raises:
        ValueError: *dialect* is not supported, or *table* is not a plain name.
    """
    kind = _BACKENDS.get(dialect)
    if kind is None:
        raise ValueError(f"a store can be in postgresql, mysql, mariadb or sqlite, not in {dialect}")
    return kind(table)


def to_store_error(backend: str, error: BaseException) -> StoreError:
    """The typed error for a driver's *error*, without the server's text, which may quote a record."""
    if backend == "postgresql":
        return postgresql_errors.to_store_error(error)
    if backend == "sqlite" and isinstance(error, sqlite3.Error):
        return sqlite_errors.translated(error, 0.0)
    number = _mysql_number(error)
    if number in _MYSQL_ADVICE:
        return StoreUnavailable(f"MySQL: {_MYSQL_ADVICE[number]}")
    if number in _MYSQL_PERMANENT:
        return StoreError(f"MySQL: {_MYSQL_PERMANENT[number]}")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    name = number or type(error).__name__
    if kinds & _PERMANENT_KINDS:
        return StoreError(
            f"the database or its driver refused the statement ({name}), and repeating it will not help; look at the "
            "error that this one was raised from"
        )
    hint = f"; {_MYSQL_HUNG_UP}" if number in _MYSQL_LOST else ""
    return StoreUnavailable(
        f"no answer from the database ({name}); the call may or may not have taken effect, and may be repeated{hint}"
    )


def conflict_of(backend: str, error: BaseException) -> StoreError:
    """`to_store_error` for an error in a transaction of the caller."""
    if backend == "postgresql":
        return postgresql_errors.in_transaction(error)
    if backend == "sqlite":
        return sqlite_errors.in_transaction(error if isinstance(error, Exception) else RuntimeError())
    if _mysql_number(error) == _CHANGED:
        return IsolationConflict(
            "this transaction's snapshot is older than the record of its claim (innodb_snapshot_isolation): roll back, "
            "and make effect and record in a READ COMMITTED transaction"
        )
    return to_store_error(backend, error)


def is_transient(backend: str, error: BaseException) -> bool:
    """Whether *error* is a conflict with another transaction: nothing has taken effect, and a retry may succeed."""
    if backend == "postgresql":
        return postgresql_errors.is_transient(error)
    if backend == "sqlite":
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    return _mysql_number(error) in _MYSQL_TRANSIENT


def waited_in_vain(backend: str, error: BaseException) -> bool:
    """Whether the server's longest wait for a lock is over; a retry would wait as long again."""
    return backend == "mysql" and _mysql_number(error) == _LOCK_TIMEOUT


def _mysql_number(error: BaseException) -> int | None:
    first = error.args[0] if error.args else None
    return first if isinstance(first, int) else None
