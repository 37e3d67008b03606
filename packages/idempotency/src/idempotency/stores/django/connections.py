"""The store's own connections to a database of the project's, each used by one thread at a time."""

from __future__ import annotations

import contextlib
from typing import Any, Final, TypeVar

from idempotency._fork import forget_in_child
from idempotency.stores._sql.statement import render
from idempotency.stores._sql.steps import Begin, Query, Result, Steps, drive

__all__ = ["Connections"]

T = TypeVar("T")

_BEGIN: Final = {"sqlite": "BEGIN IMMEDIATE", "mysql": "START TRANSACTION"}


class Connections:
    """
    Connections with the settings of the database *using*, made when they are needed and kept.

    Args:
        using: An alias of `settings.DATABASES`.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._idle: list[Any] = []
        self._of_parent: list[Any] = []  # never closed: that would end the parent's sessions
        self._closed = False
        forget_in_child(self, Connections._forget_parents)

    @property
    def vendor(self) -> str:
        """Django's name for the kind of database."""
        from django.db import connections

        return str(connections[self._using].vendor)

    def run(self, steps: Steps[T]) -> T:
        """What *steps* return, committed; a driver's own errors come through, and their connection is closed."""
        connection = self._take()
        try:
            connection.close_if_unusable_or_obsolete()
            value = _run(connection, steps)
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong is the error to report
                connection.close()
            raise
        self._idle.append(connection)
        if self._closed:
            self.close()
        return value

    def close(self) -> None:
        """Close every connection; those of calls under way, as soon as they are over."""
        self._closed = True
        with contextlib.suppress(IndexError):  # another thread may take the last
            while True:
                self._idle.pop().close()

    def _take(self) -> Any:
        from django.db import connections

        try:
            return self._idle.pop()
        except IndexError:
            connection = connections.create_connection(self._using)
            connection.inc_thread_sharing()
            return connection

    def _forget_parents(self) -> None:
        self._of_parent += self._idle
        self._idle = []


def _run(connection: Any, steps: Steps[T]) -> T:
    began = False
    with connection.cursor() as wrapped:
        # Below the wrapper that writes statements with their values into the debug log: a value is somebody's answer.
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
