"""
Opens the database file of a store safely: it is never silently created again, and never shared across a fork.

SQLite's own errors are translated here to a `StoreError` that says what to do.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from idempotency._core.errors import StoreError, StoreUnavailable
from idempotency._runtime.fork import forget_in_child
from idempotency.stores._sql.sqlite_errors import Busy, translated
from idempotency.stores._sql.statement import named
from idempotency.stores._sql.steps import Begin, Query, Result, Steps, drive

__all__ = ["DatabaseFile"]

T = TypeVar("T")

SYNCHRONOUS = ("FULL", "EXTRA", "NORMAL", "OFF")
_OLDEST = (3, 35, 0)  # RETURNING
_NETWORK = frozenset(
    ("afp", "afs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "nfs", "nfs4", "smb3", "smbfs")
)
_NOTHING = Result([], 0)
_LONGEST = 2_000_000.0  # s; SQLite has 31 bits for milliseconds, and takes a larger number as 0


class DatabaseFile:
    """
    One connection to one file, for one process.

    Args:
        path: The file. It is created if it is missing when this object is made, but never later.
        busy_timeout: Seconds to wait for another writer, or another thread of this process; 0.0: do not wait.
        set_up: Makes the steps that create what is missing when the file is opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float,
        synchronous: str,
        set_up: Callable[[], Steps[None]],
    ) -> None:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old; use 3.35 or newer")
        if synchronous not in SYNCHRONOUS:
            raise ValueError(f"synchronous must be one of {', '.join(SYNCHRONOUS)}, not {synchronous!r}")
        if not 0 <= busy_timeout <= _LONGEST:
            raise ValueError(f"busy_timeout must be from 0 to {_LONGEST:g} seconds, not {busy_timeout}")
        self.path: Path = Path(path).absolute()
        self._busy_timeout = busy_timeout
        self._synchronous = synchronous
        self._lock = threading.Lock()
        self._closed = False
        _refuse_network(self.path)
        connection = self._open("rwc", max(busy_timeout, 5.0), set_up)
        self._connection: sqlite3.Connection | None = connection
        self._identity = _identity(self.path)
        forget_in_child(self, DatabaseFile._forget_connection)

    def run(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """
        Run *call* with exclusive use of the connection.

        Raises:
            Busy: Another writer, or another thread of this process, did not end in time; nothing was changed.
            StoreUnavailable: The file cannot be used; the writes of this call are rolled back.
        """
        if not self._lock.acquire(timeout=self._busy_timeout):
            raise Busy(f"other threads held the SQLite store for {self._busy_timeout:g} s; try again")
        try:
            connection = self._usable()
            try:
                return call(connection)
            except BaseException as error:
                _roll_back(connection)
                if isinstance(error, sqlite3.Error):
                    raise translated(error, self._busy_timeout) from error
                raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Wait for the running call and close the connection; later calls are refused."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def execute(self, make: Callable[[], Steps[T]]) -> T:
        """
        Run the steps that *make* returns; writes run in a transaction that holds the write lock from its beginning.

        Raises:
            Busy, StoreUnavailable: As `run`.
        """
        return self.run(lambda connection: _execute(connection, make()))

    def is_at(self, path: Path) -> bool:
        """Whether *path* leads to the same file."""
        return _identity(path) == self._identity

    def _usable(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreUnavailable("the SQLite store is closed; open a new one")
        # A process that has a deleted file open can still use it, while the next process would create an empty one. So
        # check that the path still leads to the file that was opened.
        if _identity(self.path) != self._identity:
            raise StoreUnavailable(
                f"{self.path.name} was deleted or replaced while it was in use; put it back or restart"
            )
        if self._connection is None:  # after a fork
            self._connection = self._open("rw", max(self._busy_timeout, 5.0), None)
        return self._connection

    def _open(
        self, mode: str, patience: float, set_up: Callable[[], Steps[None]] | None
    ) -> sqlite3.Connection:
        connection = None
        try:
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode={mode}",
                uri=True,
                timeout=patience,
                isolation_level=None,
                check_same_thread=False,
            )
            self._use_wal(connection, patience)
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            if set_up is not None:
                _execute(connection, set_up())
            connection.execute(f"PRAGMA busy_timeout={int(self._busy_timeout * 1_000)}")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise translated(error, patience) from error
            raise
        return connection

    def _use_wal(self, connection: sqlite3.Connection, patience: float) -> None:
        """Turn on write-ahead logging: readers never wait for the writer, and a commit is one append and one sync."""
        deadline = time.monotonic() + patience
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            except sqlite3.OperationalError as error:
                # Two processes may open a new file at once here, and SQLite does not wait for this lock by itself.
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
                continue
            if mode != "wal":
                raise StoreError(
                    f"SQLite keeps {self.path.name} in journal mode {mode!r} and refuses WAL; put the file on a local "
                    "disk (an in-memory database cannot be shared: use MemoryStore)"
                )
            return

    def _forget_connection(self) -> None:
        """Called in a forked child: keep the parent's connection unused and unclosed; the next call opens another."""
        self._lock = threading.Lock()
        if self._connection is not None:
            _INHERITED.append(self._connection)
            self._connection = None


def _execute(connection: sqlite3.Connection, steps: Steps[T]) -> T:
    began = False

    def run(step: Query | Begin) -> Result:
        nonlocal began
        if isinstance(step, Begin):
            connection.execute("BEGIN IMMEDIATE")
            began = True
            return _NOTHING
        cursor = connection.execute(named(step.sql), step.values)
        return Result(cursor.fetchall(), cursor.rowcount)

    value = drive(steps, run)
    if began:
        connection.execute("COMMIT")
    return value


def _is_busy(error: sqlite3.Error) -> bool:
    return isinstance(translated(error, 0.0), Busy)


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.rollback()
    except sqlite3.Error:
        # Some errors end the transaction themselves. Report the first error, not this one.
        return


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - on every call; Path.stat costs twice as much
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _refuse_network(path: Path) -> None:
    """Refuse network file systems, where WAL's shared memory and SQLite's locks do not work."""
    kind = _file_system(path)
    if kind is not None and (kind in _NETWORK or kind.removeprefix("fuse.") in _NETWORK | {"sshfs"}):
        raise StoreError(
            f"{path.name} is on a network file system ({kind}), where SQLite's locks and WAL do not hold; "
            "put it on a local disk, or use the Redis or PostgreSQL store"
        )


def _file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of the file system of *path*, or None if the system does not tell (proc_pid_mountinfo(5))."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    target = path.parent.resolve()
    best, kind = -1, None
    for line in lines:
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].replace("\\040", " "))
        if target.is_relative_to(point) and len(point.parts) >= best:  # a later mount hides an earlier one
            best, kind = len(point.parts), right.split()[0]
    return kind


_INHERITED: list[sqlite3.Connection] = []  # never closed: closing one would drop locks of the parent
