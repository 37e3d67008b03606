"""Runs the steps of a call on a connection of the store's engine, and translates its failures."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from idempotency._core.errors import StoreUnavailable
from idempotency._runtime.extras import missing
from idempotency.stores._sql.caller_errors import of_a_driver
from idempotency.stores._sql.callers import commits_each
from idempotency.stores._sql.records import is_transient, records_for, to_store_error
from idempotency.stores._sql.statement import render
from idempotency.stores._sql.steps import Begin, Query, Result, Steps, drive

try:
    from sqlalchemy.engine import Connection
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.exc import TimeoutError as PoolTimeout
    from sqlalchemy.pool import SingletonThreadPool, StaticPool
except ModuleNotFoundError as _error:
    raise missing("sqlalchemy", "SQLAlchemyStore", _error) from _error

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.pool import Pool

__all__ = ["Runner", "Tries", "check_driver", "check_pool", "schema_of"]

T = TypeVar("T")

_TRIES: Final = 10  # a deadlock ends one of two transactions, which is then tried again
_LOST_TRIES: Final = 2  # tries if the connection is lost: after a restart all connections of a pool are dead
_PAUSE: Final = 0.01  # s, at most, before a retry after a deadlock


def schema_of(dialect: str, table: str = "idempotency_record") -> tuple[str, ...]:
    """
    The statements that `create_schema` runs, for your own migrations; they change nothing if the table exists.

    Args:
        dialect: "postgresql", "mysql", "mariadb" or "sqlite": `op.get_bind().dialect.name` in Alembic.

    >>> [statement.split("(")[0].strip() for statement in schema_of("mysql")]
    ['CREATE TABLE IF NOT EXISTS `idempotency_record`']
    """
    return records_for(dialect, table).schema()


def check_driver(dialect: Dialect) -> None:
    """
    Refuse a driver that cannot write a record.

    Raises:
        ValueError: aiomysql, which cannot bind bytes together with a current PyMySQL.
    """
    if dialect.driver == "aiomysql":
        raise ValueError("aiomysql cannot bind bytes with a current PyMySQL: use mysql+asyncmy://")


def check_pool(pool: Pool) -> None:
    """
    Refuse a pool that gives the store a connection with an open transaction of the application.

    The store's commit would also commit the application's effect, even if that is not finished.

    Raises:
        ValueError: The pool has one connection for all, or one per thread, as for a SQLite database in memory.
    """
    if isinstance(pool, StaticPool | SingletonThreadPool):
        raise ValueError(
            f"this engine's {type(pool).__name__} gives the store your own session's connection, and each call of the "
            "store would commit what your session has begun: use a file instead of a SQLite database in memory, or a "
            "MemoryStore in tests"
        )


class Runner:
    """
    Runs the steps of one call on one connection.

    Args:
        backend: "postgresql", "mysql" or "sqlite".
        paramstyle: The driver's (PEP 249).
    """

    def __init__(self, backend: str, paramstyle: str) -> None:
        self._backend = backend
        self._paramstyle = paramstyle

    def run(self, connection: Connection, make: Callable[[], Steps[T]]) -> T:
        """Commits the steps of *make* and returns their result."""
        if self._backend == "postgresql":  # each call is one statement, which may commit itself
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")

        began = False  # whether the store sent BEGIN itself and must send COMMIT: see _begin_sqlite

        def commit() -> None:
            nonlocal began
            if began:
                connection.exec_driver_sql("COMMIT")
                began = False
            connection.commit()

        def step(asked: Query | Begin) -> Result:
            nonlocal began
            if not isinstance(asked, Begin):
                return self._execute(connection, asked)
            commit()  # ends the batch before, if any, so that no old snapshot is read
            if self._backend == "mysql":
                self._begin_mysql(connection)
            elif asked.lock is not None:
                began = self._begin_sqlite(connection, asked.lock)
            return Result([], 0)

        try:
            value = drive(make(), step)
            commit()
        except BaseException:
            if began:
                with suppress(Exception):  # report the first error, not this one
                    connection.exec_driver_sql("ROLLBACK")
            raise
        return value

    def _begin_mysql(self, connection: Connection) -> None:
        # By a statement, for the next transaction only: the engine's own setting stays, and a dead connection is
        # noticed as by any other statement.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        if commits_each(connection):
            connection.exec_driver_sql("START TRANSACTION")

    def _begin_sqlite(self, connection: Connection, lock: Query) -> bool:
        """
        Returns whether the transaction was begun by a statement here, because the engine commits every statement.

        Then it must also end by a statement: with `autocommit=True` (Python 3.12) sqlite3's commit() and rollback() do
        nothing.
        """
        self._execute(connection, lock)  # the driver, or the application's own event, begins before it
        driver: Any = connection.connection.driver_connection
        if driver.in_transaction:
            return False
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return True

    def tries(self, *, removes: bool) -> Tries:
        """A new counter for the tries of one call."""
        return Tries(self._backend, removes=removes)

    def _execute(self, connection: Connection, query: Query) -> Result:
        result = connection.exec_driver_sql(*render(query.sql, query.values, self._paramstyle))
        rows: list[tuple[Any, ...]] = [tuple(row) for row in result] if result.returns_rows else []
        return Result(rows, result.rowcount)


class Tries:
    """
    Counts the tries of one call, and decides whether an error is followed by a retry.

    Args:
        removes: Whether a retry may find nothing because an earlier try, whose answer was lost, removed the record.
    """

    def __init__(self, backend: str, *, removes: bool) -> None:
        self._backend = backend
        self._removes = removes
        self._left = _TRIES
        self._lost_left = _LOST_TRIES

    def failed(self, error: Exception) -> float:
        """
        Returns the seconds to wait before the next try.

        Raises:
            StoreError: There is no further try. Errors that do not come from a database are raised unchanged.
        """
        if not of_a_driver(error):
            raise error
        cause: BaseException = error
        if isinstance(error, DBAPIError):
            cause = error.orig or error
            self._left -= 1
            if is_transient(self._backend, cause) and self._left:
                return random.uniform(0, _PAUSE)  # noqa: S311 - so that two victims do not meet again
            self._lost_left -= 1
            # A removal whose answer was lost is not repeated, because finding nothing would then not mean "no".
            if error.connection_invalidated and self._lost_left and not self._removes:
                return 0.0
        if isinstance(error, PoolTimeout):
            raise StoreUnavailable(
                "the engine's pool had no connection in time; make it larger, or find out what holds them"
            ) from error
        raise to_store_error(self._backend, cause) from error

    def too_late(self, deadline: float) -> StoreUnavailable:
        """The error for no answer within *deadline* seconds."""
        return StoreUnavailable(
            f"no answer from the database within {deadline:g} s; the call may or may not have taken effect, and may "
            "be repeated"
        )
