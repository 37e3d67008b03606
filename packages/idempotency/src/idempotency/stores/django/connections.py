"""The store's own connections to a database of the project; only one thread at a time uses a connection."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final, TypeVar

from idempotency._runtime.fork import forget_in_child
from idempotency.stores._sql.statement import render
from idempotency.stores._sql.steps import Begin, Query, Result, Steps, drive

__all__ = ["Connections"]

T = TypeVar("T")

_LONGEST_IDLE: Final = 60.0  # s; servers and proxies close what is idle for minutes
_BEGIN: Final = {"sqlite": "BEGIN IMMEDIATE", "mysql": "START TRANSACTION"}


class Connections:
    """
    Connections with the settings of the database *using*, opened when needed and then kept.

    A positive `CONN_MAX_AGE` limits their age. With Django's default, 0, a connection ends with its request. The
    store's connections belong to no request, so they are kept, but reopened after a minute without use. A connection
    of Django's own pool (the option `pool`) returns to the pool after each call.

    Args:
        using: An alias of `settings.DATABASES`.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._idle: list[tuple[Any, float]] = []  # connections, and when each became idle
        self._of_parent: list[Any] = []  # kept after a fork: closing them would end the parent's sessions
        self._closed = False
        forget_in_child(self, Connections._forget_parents)

    @property
    def vendor(self) -> str:
        """Django's name for the kind of database."""
        from django.db import connections

        return str(connections[self._using].vendor)

    @property
    def is_locked_by_caller(self) -> bool:
        """Whether this thread is in a SQLite transaction of the project, which blocks all other writers."""
        from django.db import connections

        connection = connections[self._using]
        return connection.vendor == "sqlite" and connection.in_atomic_block

    def run(self, steps: Steps[T]) -> T:
        """Run and commit *steps*; returns their result. An error closes the connection and is raised unchanged."""
        connection, idle_since = self._take()
        try:
            _refresh(connection, idle_since)
            value = _run(connection, steps)
        except BaseException:
            with contextlib.suppress(Exception):  # report the first error, not this one
                connection.close()
            raise
        if getattr(connection, "pool", None) is not None:  # returns the connection to the project's pool
            connection.close()
        self._idle.append((connection, time.monotonic()))
        if self._closed:
            self.close()
        return value

    def close(self) -> None:
        """Close every connection; a connection in use is closed after its call."""
        self._closed = True
        with contextlib.suppress(IndexError):  # another thread may take the last one
            while True:
                self._idle.pop()[0].close()

    def _take(self) -> tuple[Any, float]:
        from django.db import connections

        try:
            return self._idle.pop()
        except IndexError:
            connection = connections.create_connection(self._using)
            # With AUTOCOMMIT off, nobody would commit the statements in PostgreSQL.
            connection.settings_dict = {**connection.settings_dict, "AUTOCOMMIT": True}
            connection.inc_thread_sharing()
            return connection, time.monotonic()

    def _forget_parents(self) -> None:
        self._of_parent += [connection for connection, _ in self._idle]
        self._idle = []


def _refresh(connection: Any, idle_since: float) -> None:
    """Close a connection that is too old or was idle too long; the next statement opens it again."""
    if not connection.settings_dict["CONN_MAX_AGE"]:
        connection.close_at = None
    if time.monotonic() - idle_since > _LONGEST_IDLE:
        connection.close()
    else:
        connection.close_if_unusable_or_obsolete()


def _run(connection: Any, steps: Steps[T]) -> T:
    began = False
    with connection.cursor() as wrapped:
        # The inner cursor: Django's wrapper would write values, such as recorded answers, into the debug log.
        cursor = wrapped.cursor

        def step(asked: Query | Begin) -> Result:
            nonlocal began
            if isinstance(asked, Query):
                cursor.execute(*render(asked.sql, asked.values, "format"))
                rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
                return Result(rows, cursor.rowcount)
            if began:
                cursor.execute("COMMIT")
            if connection.vendor in _BEGIN:  # PostgreSQL's calls are one statement each, which commits itself
                cursor.execute(_BEGIN[connection.vendor])
                began = True
            return Result([], 0)

        value = drive(steps, step)
        if began:
            cursor.execute("COMMIT")
    return value
