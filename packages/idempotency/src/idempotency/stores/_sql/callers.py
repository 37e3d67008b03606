"""
Runs the statements of `complete_in` on the application's own connection, in its transaction.

A statement always goes through the object that the caller gave (its session, its wrapper), never through the driver's
connection inside it: SQLAlchemy and Django begin the transaction at the first statement that they see, and a statement
that bypassed them would be committed alone. Only frameworks that the application has imported are used here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from idempotency.stores._sql.caller_errors import autocommitting, is_a, nested, other_backend
from idempotency.stores._sql.statement import render
from idempotency.stores._sql.steps import Begin, Query, Result, Steps, drive, drive_async

__all__ = ["AsyncCaller", "Caller", "async_caller", "commits_each", "sync_caller"]

T = TypeVar("T")

_BACKENDS: Final = {"mariadb": "mysql"}  # dialect -> backend, where the names differ


class Caller(Protocol):
    """
    An application's connection, in its transaction.

    Attributes:
        tests: Whether a test harness put a savepoint around the application's own transaction; that one is allowed.
    """

    tests: bool

    def drive(self, steps: Steps[T]) -> T:
        """Run *steps* in the current transaction; the driver's errors are raised unchanged."""
        ...


class AsyncCaller(Protocol):
    """See `Caller`."""

    tests: bool

    async def drive(self, steps: Steps[T]) -> T:
        """See `Caller.drive`."""
        ...


def sync_caller(connection: object, backend: str) -> Caller | None:
    """
    A `Caller` for *connection* of SQLAlchemy, Django or the backend's own driver; None for any other object.

    Args:
        backend: "postgresql", "mysql" or "sqlite": where the store's records are.
    Raises:
        ValueError: The connection leads to another kind of database, commits every statement, or is in a savepoint.

    Errors of a session that cannot flush its changes, or has no transaction for them, are raised unchanged.
    """
    if is_a(connection, "sqlalchemy.orm", "scoped_session"):
        connection = connection()  # type: ignore[operator]
    if is_a(connection, "sqlalchemy.orm", "Session"):
        return _of_session(connection, backend)
    if is_a(connection, "sqlalchemy.engine", "Connection"):
        return _of_connection(connection, backend)
    if is_a(connection, "django.utils.connection", "ConnectionProxy") or is_a(
        connection, "django.db.backends.base.base", "BaseDatabaseWrapper"
    ):
        return _of_django(connection, backend)
    if backend == "postgresql" and is_a(connection, "psycopg", "Connection"):
        return _Psycopg(connection)
    if backend == "sqlite" and isinstance(connection, sqlite3.Connection):
        return _Sqlite3(connection)
    return None


def async_caller(connection: object, backend: str) -> AsyncCaller | None:
    """
    An `AsyncCaller` for *connection* of SQLAlchemy's asyncio extension, psycopg, asyncpg or aiosqlite; None for any
    other object.

    Args:
        backend: See `sync_caller`.
    Raises:
        ValueError: See `sync_caller`. For SQLAlchemy's connections `AsyncCaller.drive` raises it.
    """
    if is_a(connection, "sqlalchemy.ext.asyncio", "async_scoped_session"):
        connection = connection()  # type: ignore[operator]
    if is_a(connection, "sqlalchemy.ext.asyncio", "AsyncSession", "AsyncConnection"):
        return _AsyncSQLAlchemy(connection, backend)
    if backend == "postgresql" and is_a(connection, "psycopg", "AsyncConnection"):
        return _AsyncPsycopg(connection)
    if backend == "postgresql" and is_a(connection, "asyncpg", "Connection"):
        return _Asyncpg(connection)
    if backend == "sqlite" and is_a(connection, "aiosqlite", "Connection"):
        return _Aiosqlite(connection)
    return None


# SQLAlchemy.


def _of_session(session: Any, backend: str) -> Caller:
    if session.in_nested_transaction():
        raise nested()
    session.flush()  # the effects first, so that a violated constraint is reported as their error
    connection = _only_connection(session)
    tests = connection.in_nested_transaction()
    # A session that a test bound to a connection uses a savepoint there, and commits that savepoint.
    if tests and not is_a(session.get_bind(), "sqlalchemy.engine", "Connection"):
        raise nested()
    return _SQLAlchemy(connection, backend, tests=tests)


def _only_connection(session: Any) -> Any:
    from sqlalchemy.exc import UnboundExecutionError

    try:
        return session.connection()
    except UnboundExecutionError as error:
        raise ValueError(
            "this session has no bind, or one for each mapper, so it is not clear where the record belongs: pass the "
            "connection of the effect to complete_in, session.connection(bind_arguments={...})"
        ) from error


def _of_connection(connection: Any, backend: str) -> Caller:
    if connection.in_nested_transaction():
        raise nested()
    return _SQLAlchemy(connection, backend, tests=False)


class _SQLAlchemy:
    def __init__(self, connection: Any, backend: str, *, tests: bool) -> None:
        dialect = connection.dialect
        if _BACKENDS.get(dialect.name, dialect.name) != backend:
            raise other_backend(dialect.name, backend)
        self.tests = tests
        self._connection = connection
        self._paramstyle: str = dialect.paramstyle
        if backend != "sqlite" and commits_each(connection):
            raise autocommitting()

    def drive(self, steps: Steps[T]) -> T:
        return drive(steps, self._run)

    def _run(self, step: Query | Begin) -> Result:
        if isinstance(step, Begin):
            if step.lock is not None:
                self._execute(step.lock)
                # SQLite's driver begins a transaction at the first write. Its settings do not tell whether it
                # commits each statement, so check that a transaction has begun.
                if not self._connection.connection.driver_connection.in_transaction:
                    raise autocommitting()
            return Result([], 0)
        return self._execute(step)

    def _execute(self, query: Query) -> Result:
        from sqlalchemy.exc import DBAPIError

        text, params = render(query.sql, query.values, self._paramstyle)
        try:
            result = self._connection.exec_driver_sql(text, params)
            return Result([tuple(row) for row in result] if result.returns_rows else [], result.rowcount)
        except DBAPIError as error:
            raise (error.orig or error) from error


def commits_each(connection: Any) -> bool:
    """Whether the driver commits each statement; `in_transaction()` is True even then, so it does not help."""
    dialect, driver = connection.dialect, connection.connection.dbapi_connection
    detect: Callable[[Any], bool] | None = getattr(dialect, "detect_autocommit_setting", None)
    if detect is not None:
        try:
            return bool(detect(driver))
        except NotImplementedError:
            pass
    level = connection.get_execution_options().get("isolation_level")
    return level == "AUTOCOMMIT" or getattr(driver, "autocommit", False) is True


class _AsyncSQLAlchemy:
    def __init__(self, connection: Any, backend: str) -> None:
        self.tests = False
        self._connection = connection
        self._backend = backend

    async def drive(self, steps: Steps[T]) -> T:
        def work(inner: object, *_: object) -> T:
            caller = sync_caller(inner, self._backend)
            assert caller is not None
            self.tests = caller.tests
            return caller.drive(steps)

        result: T = await self._connection.run_sync(work)
        return result


# Django.


def _of_django(connection: Any, backend: str) -> Caller:
    if connection.vendor != backend:
        raise other_backend(connection.vendor, backend)
    if not connection.in_atomic_block and connection.get_autocommit():
        raise autocommitting()
    # One atomic block inside another is a savepoint, unless a TestCase opened the outer one.
    blocks = connection.atomic_blocks
    inner = list(zip(blocks, connection.savepoint_ids, strict=False))
    if any(savepoint and not getattr(outer, "_from_testcase", False) for outer, savepoint in inner):
        raise nested()
    return _Django(connection, tests=any(savepoint for _, savepoint in inner))


class _Django:
    def __init__(self, connection: Any, *, tests: bool) -> None:
        self.tests = tests
        self._connection = connection

    def drive(self, steps: Steps[T]) -> T:
        return drive(steps, self._run)

    def _run(self, step: Query | Begin) -> Result:
        if isinstance(step, Begin):
            return Result([], 0) if step.lock is None else self._execute(step.lock)
        return self._execute(step)

    def _execute(self, query: Query) -> Result:
        from django.db import Error
        from django.db.transaction import TransactionManagementError

        text, params = render(query.sql, query.values, "format")
        try:
            # Django's wrapper would write values, such as recorded answers, into its debug log. The statement runs on
            # the inner cursor instead, after the same check and with the same errors.
            with self._connection.cursor() as wrapped, self._connection.wrap_database_errors:
                self._connection.validate_no_broken_transaction()
                cursor = wrapped.cursor
                cursor.execute(text, params)
                rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
                return Result(rows, cursor.rowcount)
        except TransactionManagementError:  # its cause may be an earlier error of the application
            raise
        except Error as error:
            raise (error.__cause__ or error) from error


# Drivers without an event loop. Cursors are made here, because the connection's factories may make unusual ones.


class _Psycopg:
    def __init__(self, connection: Any) -> None:
        if _has_no_transaction(connection):
            raise autocommitting()
        self.tests = False
        self._connection = connection

    def drive(self, steps: Steps[T]) -> T:
        return drive(steps, self._run)

    def _run(self, step: Query | Begin) -> Result:
        import psycopg
        from psycopg.rows import tuple_row

        if isinstance(step, Begin):
            return Result([], 0)
        with psycopg.Cursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(step.sql.encode(), step.values, binary=True)
            return Result(cursor.fetchall(), cursor.rowcount)


def _has_no_transaction(connection: Any) -> bool:
    import psycopg

    idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    return bool(connection.autocommit and idle)


class _Sqlite3:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self.tests = False
        self._connection = connection

    def drive(self, steps: Steps[T]) -> T:
        return drive(steps, self._run)

    def _run(self, step: Query | Begin) -> Result:
        # `in_transaction` raises if the connection is closed; the error is translated here.
        if not self._connection.in_transaction:
            raise autocommitting()
        query = step.lock if isinstance(step, Begin) else step
        if query is None:
            return Result([], 0)
        cursor = sqlite3.Cursor(self._connection)
        cursor.row_factory = None
        cursor.execute(*render(query.sql, query.values, "named"))
        return Result(cursor.fetchall(), cursor.rowcount)


# Drivers with an event loop.


class _AsyncPsycopg:
    def __init__(self, connection: Any) -> None:
        if _has_no_transaction(connection):
            raise autocommitting()
        self.tests = False
        self._connection = connection

    async def drive(self, steps: Steps[T]) -> T:
        return await drive_async(steps, self._run)

    async def _run(self, step: Query | Begin) -> Result:
        import psycopg
        from psycopg.rows import tuple_row

        if isinstance(step, Begin):
            return Result([], 0)
        async with psycopg.AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(step.sql.encode(), step.values, binary=True)
            return Result(await cursor.fetchall(), cursor.rowcount)


class _Asyncpg:
    def __init__(self, connection: Any) -> None:
        if not connection.is_in_transaction():
            raise autocommitting()
        self.tests = False
        self._connection = connection

    async def drive(self, steps: Steps[T]) -> T:
        return await drive_async(steps, self._run)

    async def _run(self, step: Query | Begin) -> Result:
        if isinstance(step, Begin):
            return Result([], 0)
        text, params = render(step.sql, step.values, "numeric_dollar")
        rows = [tuple(row) for row in await self._connection.fetch(text, *params)]
        return Result(rows, len(rows))


class _Aiosqlite:
    def __init__(self, connection: Any) -> None:
        if not connection.in_transaction:
            raise autocommitting()
        self.tests = False
        self._connection = connection

    async def drive(self, steps: Steps[T]) -> T:
        return await drive_async(steps, self._run)

    async def _run(self, step: Query | Begin) -> Result:
        query = step.lock if isinstance(step, Begin) else step
        if query is None:
            return Result([], 0)
        text, params = render(query.sql, query.values, "named")
        async with self._connection.cursor() as cursor:
            cursor.row_factory = None  # the connection's own factory may change the rows
            await cursor.execute(text, params)
            return Result(list(await cursor.fetchall()), cursor.rowcount)
