"""
Records in a database of a Django project: PostgreSQL, MySQL or MariaDB, SQLite.

Put "idempotency.stores.django" into `INSTALLED_APPS`, and `migrate` creates the table. The store has its own
connections, with the project's settings, because others must see a claim at once, not at the end of the view's
transaction.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from idempotency._runtime.extras import missing

try:
    from django.core.exceptions import SynchronousOnlyOperation
except ModuleNotFoundError as _error:
    raise missing("django", "SyncDjangoStore", _error) from _error

from idempotency._core.errors import StoreUnavailable
from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.store import Page
from idempotency.stores._sql.caller_errors import of_a_driver, sync_kinds, translated, wrong_kind
from idempotency.stores._sql.callers import sync_caller
from idempotency.stores._sql.records import (
    SqlRecords,
    conflict_of,
    is_transient,
    records_for,
    to_store_error,
    waited_in_vain,
)
from idempotency.stores._sql.steps import Steps
from idempotency.stores.django.connections import Connections

__all__ = ["SyncDjangoStore"]

T = TypeVar("T")

_TRIES: Final = 10  # a deadlock ends one of two transactions, which is then tried again
_PAUSE: Final = 0.01  # s, at most, before the victim tries again


class SyncDjangoStore:
    """
    A store in one of the databases of `settings.DATABASES`, for threads and processes.

    Args:
        using: The database's alias.
        table: A plain lower-case name, or schema.name; the migration makes the default one.

    In PostgreSQL and SQLite it uses the same table and records as `PostgresStore` and `SQLiteStore`. The database's
    `OPTIONS` limit the time of a call (`connect_timeout`, `timeout`). Under ASGI use
    `ThreadedStore(SyncDjangoStore())`.

    Every method raises `StoreUnavailable` if there was no answer. Each call is one transaction.
    """

    def __init__(self, using: str = "default", *, table: str = "idempotency_record") -> None:
        self._connections = Connections(using)
        self._table = table
        self._found: SqlRecords | None = None

    @property
    def _records(self) -> SqlRecords:
        if self._found is None:  # made late, because the store may be made before the settings are complete
            self._found = records_for(self._connections.vendor, self._table)
        return self._found

    def create_schema(self) -> None:
        """
        Create the table if it is missing, without a migration.

        Raises:
            RuntimeError: It was called in an event loop; every method raises this then.
        """
        self._run(lambda records: records.create())

    def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool = True,
    ) -> Reply:
        """
        See `Store.acquire`. A replay writes nothing and takes no lock.

        Raises:
            RuntimeError: The caller is in a transaction of the same SQLite database, and the claim would wait for it.
        """
        if self._connections.is_locked_by_caller:
            raise RuntimeError(
                "the caller is in a transaction (ATOMIC_REQUESTS), and SQLite allows no other write: keep the "
                'records in a separate file, such as IDEMPOTENCY = {"STORE": "sqlite:///idempotency.sqlite3"}, '
                "or claim before the transaction, as the middleware does for a view without protect or the mixin"
            )
        make: Callable[[SqlRecords], Steps[Reply]] = lambda records: records.acquire(  # noqa: E731 - for mypy
            key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
        )
        return self._run(make)

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return self._run(lambda records: records.renew(claim, lease=lease))

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. Also deletes two expired records."""
        return self._run(lambda records: records.complete(claim, outcome, retention=retention))

    def complete_in(self, connection: Any, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """
        Record the outcome in the caller's transaction: effect and record are committed together, or neither.

        Args:
            connection: `django.db.connection`, or one of `connections`, for the same database, inside `atomic()` (with
                `ATOMIC_REQUESTS` a view is inside it).
            retention: Seconds.
        Returns:
            False if the claim no longer holds the key, or its outcome is already recorded, even by this claim: then
            roll back, because the effect belongs to another run or was already made.
        Raises:
            ValueError: No transaction has begun, or it is an inner `atomic()` block, which is a savepoint (blocks that
                a `TestCase` puts around yours do not count).
            TypeError, IsolationConflict, StoreError, StoreUnavailable: See `PostgresStore.complete_in`.
        """
        backend = self._records.backend
        caller = sync_caller(connection, backend)
        if caller is None:
            raise wrong_kind(self, connection, *sync_kinds(backend))
        steps = self._records.complete_in(caller, claim, outcome, retention=retention)
        return caller.drive(translated(steps, partial(conflict_of, backend)))

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return self._run(lambda records: records.release(claim), removes=True)

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return self._run(lambda records: records.get(key))

    def purge(self, *, limit: int = 1_000) -> int:
        """See `Purgeable.purge`. Rows that others have locked are left for the next purge."""
        return self._run(lambda records: records.purge(limit), removes=True)

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`. In key order."""
        return self._run(lambda records: records.scan(limit, cursor))

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        return self._run(lambda records: records.forget(key), removes=True)

    def close(self) -> None:
        """Close the store's own connections; those of the project stay open."""
        self._connections.close()

    def _run(self, make: Callable[[SqlRecords], Steps[T]], *, removes: bool = False) -> T:
        records, may_have_been_lost = self._records, True
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._connections.run(make(records))
            except SynchronousOnlyOperation as error:
                raise RuntimeError(
                    "SyncDjangoStore was called in an event loop, where Django does not allow database access: use "
                    "ThreadedStore(SyncDjangoStore())"
                ) from error
            except Exception as error:
                if not of_a_driver(error):
                    raise
                meaning = to_store_error(records.backend, error)
                if waited_in_vain(records.backend, error):
                    raise meaning from error
                if tries_left and is_transient(records.backend, error):
                    time.sleep(random.uniform(0, _PAUSE))  # noqa: S311 - so that two victims do not meet again
                elif may_have_been_lost and type(meaning) is StoreUnavailable and not removes:
                    # An idle connection may have died, so try once more; a removal is not repeated (R5).
                    may_have_been_lost = False
                else:
                    raise meaning from error
        raise AssertionError("the last try returns or raises")
