"""Translates SQLite's errors, from any driver, to store errors that say what to do."""

from __future__ import annotations

import sqlite3

from idempotency._core.errors import IsolationConflict, StoreError, StoreUnavailable

__all__ = ["Busy", "in_transaction", "translated"]

_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space or purge expired records",
    sqlite3.SQLITE_READONLY: "the file, its directory or its disk is read-only; make all three writable",
    sqlite3.SQLITE_IOERR: "reading or writing the file failed; look at the disk and at the system's log",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; check that its directory exists and may be written",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it or move it away, and restart",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database; check the path",
    sqlite3.SQLITE_SCHEMA: "the schema changed under the store; restart",
}
# Errors that do not go away when the call is repeated, such as a refusal by an authorizer.
_PERMANENT = frozenset(
    (
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    )
)


class Busy(StoreUnavailable):
    """Another connection holds the write lock; the call had no effect."""


def translated(error: sqlite3.Error, busy_timeout: float) -> StoreError:
    """The typed error for *error*; SQLite's message is in its cause, not in its text."""
    # Without a code the Python module refused the call: the connection is closed, or belongs to another thread.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        waited = f" after {busy_timeout:g} s" if busy_timeout else ""
        return Busy(f"the SQLite file is still locked by another writer{waited}; try again")
    advice = _ADVICE.get(code)
    if advice is not None:
        return StoreUnavailable(f"the SQLite store failed: {advice}")
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code in _PERMANENT:
        return StoreError(
            f"SQLite or its driver refused the statement ({name}), and repeating it will not help; look at the error "
            "that this one was raised from"
        )
    return StoreUnavailable(f"the SQLite store failed with {name}; its cause has the details")


def in_transaction(error: Exception) -> StoreError:
    """`translated` for an error in a transaction of the caller, from any driver."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return IsolationConflict(
            "this SQLite transaction began to read before another write (a claim, or the renewal of its lease), so it "
            "cannot write any more: roll back, and begin it with BEGIN IMMEDIATE, or with the effect, after the claim "
            "was made"
        )
    if isinstance(error, sqlite3.Error):
        return translated(error, 0.0)
    return StoreError(
        f"the connection refused the statement ({type(error).__name__}), and repeating it will not help; look at the "
        "error that this one was raised from"
    )
