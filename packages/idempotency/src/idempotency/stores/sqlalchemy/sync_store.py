"""`SyncSQLAlchemyStore`: records over an `Engine`, for callers without an event loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._runtime.fork import forget_in_child
from idempotency.store import Page
from idempotency.stores._sql.caller_errors import sync_kinds, translated, wrong_kind
from idempotency.stores._sql.callers import sync_caller
from idempotency.stores._sql.records import conflict_of, records_for
from idempotency.stores._sql.steps import Steps
from idempotency.stores.sqlalchemy.run import Runner, check_driver, check_pool

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool

    from idempotency.stores._sql.caller_types import SyncFramework

__all__ = ["SyncSQLAlchemyStore"]

T = TypeVar("T")


class SyncSQLAlchemyStore:
    """
    A store over an `Engine`, for threads and processes. After a fork call `engine.dispose(close=False)` in the child,
    unless the store owns the engine.

    Args:
        engine: For PostgreSQL (psycopg, psycopg2), MySQL or MariaDB (PyMySQL, mysqlclient), or a SQLite file; it
            belongs to the caller. Its `pool_timeout` and its driver's timeouts limit the time of a call.
        table: See `SQLAlchemyStore`.
        owns_engine: Whether `close` also disposes of *engine*.
    """

    def __init__(
        self, engine: Engine, *, table: str = "idempotency_record", owns_engine: bool = False
    ) -> None:
        check_driver(engine.dialect)
        check_pool(engine.pool)
        self._engine = engine
        self._records = records_for(engine.dialect.name, table)
        self._runner = Runner(self._records.backend, engine.dialect.paramstyle)
        self._owns_engine = owns_engine
        self._of_parent: list[Pool] = []
        if owns_engine:
            forget_in_child(self, SyncSQLAlchemyStore._forget_connections)

    def create_schema(self) -> None:
        """See `SQLAlchemyStore.create_schema`."""
        self._run(self._records.create)

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
        """See `Store.acquire`. A replay writes nothing and takes no lock."""
        make: Callable[[], Steps[Reply]] = lambda: self._records.acquire(  # noqa: E731 - mypy cannot join the replies
            key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
        )
        return self._run(make)

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return self._run(lambda: self._records.renew(claim, lease=lease))

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. Also deletes two expired records."""
        return self._run(lambda: self._records.complete(claim, outcome, retention=retention))

    def complete_in(
        self, connection: SyncFramework, claim: Claim, outcome: bytes, *, retention: float
    ) -> bool:
        """
        See `SQLAlchemyStore.complete_in`.

        Args:
            connection: A `Session` or `Connection` of the same database, Django's connection, or a driver's.
        """
        caller = sync_caller(connection, self._records.backend)
        if caller is None:
            takes = sync_kinds(self._records.backend)
            raise wrong_kind(self, connection, *takes, instead="SQLAlchemyStore takes the others")
        steps = self._records.complete_in(caller, claim, outcome, retention=retention)
        return caller.drive(translated(steps, partial(conflict_of, self._records.backend)))

    def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return self._run(lambda: self._records.release(claim), removes=True)

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return self._run(lambda: self._records.get(key))

    def purge(self, *, limit: int = 1_000) -> int:
        """See `SQLAlchemyStore.purge`."""
        return self._run(lambda: self._records.purge(limit), removes=True)

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`. In key order."""
        return self._run(lambda: self._records.scan(limit, cursor))

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        return self._run(lambda: self._records.forget(key), removes=True)

    def close(self) -> None:
        """Dispose of the engine if the store owns it."""
        if self._owns_engine:
            self._engine.dispose()

    def _run(self, make: Callable[[], Steps[T]], *, removes: bool = False) -> T:
        tries = self._runner.tries(removes=removes)
        while True:
            try:
                with self._engine.connect() as connection:
                    return self._runner.run(connection, make)
            except Exception as error:
                time.sleep(tries.failed(error))

    def _forget_connections(self) -> None:
        """Called in a forked child: keep the parent's connections unused and unclosed; the next call opens others."""
        self._of_parent.append(self._engine.pool)
        self._engine.dispose(close=False)
