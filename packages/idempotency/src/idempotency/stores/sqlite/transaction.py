"""`complete_in` for SQLite: writes the record in the application's transaction, with any driver."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Coroutine, Generator
from pathlib import Path
from typing import Any, Final

from idempotency._core.types import Claim
from idempotency.stores._sql.caller_errors import translated, wrong_kind
from idempotency.stores._sql.callers import AsyncCaller, Caller, async_caller, sync_caller
from idempotency.stores._sql.sqlite import SqliteRecords
from idempotency.stores._sql.sqlite_errors import in_transaction
from idempotency.stores._sql.steps import Query, Steps
from idempotency.stores.sqlite.file import DatabaseFile

__all__ = ["PendingAnswer", "complete_in", "complete_in_async"]

_SYNC: Final = ("sqlite3.Connection", "SQLAlchemy's Session or Connection", "Django's connection")
_ASYNC: Final = ("aiosqlite.Connection", "SQLAlchemy's AsyncSession or AsyncConnection")


class PendingAnswer(Awaitable[bool]):
    """The awaitable that `complete_in` returns for an async connection; it has no truth value itself."""

    def __init__(self, answer: Coroutine[Any, Any, bool]) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, Any, bool]:
        """Write the record; returns whether the claim still held its key."""
        return self._answer.__await__()

    def __bool__(self) -> bool:
        """Refuse, because without `await` it would always be true."""
        self._answer.close()
        raise TypeError("complete_in with an async connection has to be awaited")


def complete_in(
    store: object,
    file: DatabaseFile,
    records: SqliteRecords,
    connection: object,
    claim: Claim,
    outcome: bytes,
    retention: float,
) -> bool:
    """See `SyncSQLiteStore.complete_in`."""
    caller = sync_caller(connection, "sqlite")
    if caller is None:
        raise wrong_kind(store, connection, *_SYNC, instead="SQLiteStore takes those of an event loop too")
    return caller.drive(_steps(file, records, caller, claim, outcome, retention))


def complete_in_async(
    store: object,
    file: DatabaseFile,
    records: SqliteRecords,
    connection: object,
    claim: Claim,
    outcome: bytes,
    retention: float,
) -> bool | PendingAnswer:
    """See `SQLiteStore.complete_in`."""
    caller = async_caller(connection, "sqlite")
    if caller is not None:
        steps = _steps(file, records, caller, claim, outcome, retention)
        return PendingAnswer(caller.drive(steps))
    known = sync_caller(connection, "sqlite")
    if known is None:
        raise wrong_kind(store, connection, *_SYNC, *_ASYNC)
    return known.drive(_steps(file, records, known, claim, outcome, retention))


def _steps(
    file: DatabaseFile,
    records: SqliteRecords,
    caller: Caller | AsyncCaller,
    claim: Claim,
    outcome: bytes,
    retention: float,
) -> Steps[bool]:
    return translated(_complete_in(file, records, caller, claim, outcome, retention), in_transaction)


def _complete_in(
    file: DatabaseFile,
    records: SqliteRecords,
    caller: Caller | AsyncCaller,
    claim: Claim,
    outcome: bytes,
    retention: float,
) -> Steps[bool]:
    # As bytes, because the application may have changed how its connection reads text.
    main = yield Query("SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'", {})
    name = os.fsdecode(main.rows[0][0] or b"")
    if not (name and file.is_at(Path(name))):
        raise ValueError(
            f"the connection is not to {file.path.name}, where this store keeps its records: pass a connection to it"
        )
    return (yield from records.complete_in(caller, claim, outcome, retention=retention))
