"""
Records in the database of your SQLAlchemy engine: PostgreSQL, MySQL or MariaDB, SQLite.

In PostgreSQL and SQLite it uses the same table and records as `PostgresStore` and `SQLiteStore`, with any driver, so
these stores may share a table. Effect and record can be committed together: `complete_in` takes a `Session`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._runtime.asyncio_only import asyncio_loop, other_loop
from idempotency.store import Page
from idempotency.stores._sql.caller_errors import translated, wrong_kind
from idempotency.stores._sql.callers import async_caller
from idempotency.stores._sql.records import conflict_of, records_for
from idempotency.stores._sql.steps import Steps
from idempotency.stores.sqlalchemy.run import Runner, check_driver, check_pool, schema_of
from idempotency.stores.sqlalchemy.sync_store import SyncSQLAlchemyStore

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from idempotency.stores._sql.caller_types import AsyncFramework

__all__ = ["SQLAlchemyStore", "SyncSQLAlchemyStore", "schema_of"]

T = TypeVar("T")

_TAKES: Final = {
    "postgresql": ("psycopg.AsyncConnection", "asyncpg.Connection"),
    "sqlite": ("aiosqlite.Connection",),
    "mysql": (),
}
"""The drivers' connections that `complete_in` takes, beside SQLAlchemy's."""


class SQLAlchemyStore:
    """
    A store over an `AsyncEngine`, in one event loop of asyncio.

    Args:
        engine: For PostgreSQL (asyncpg, psycopg), MySQL or MariaDB (asyncmy), or a SQLite file (aiosqlite); it belongs
            to the caller.
        table: A plain lower-case name, or schema.name.
        deadline: Seconds for a whole call: waiting for the pool, the statements, retries.
        owns_engine: Whether `aclose` also disposes of *engine*.

    Every method raises `StoreUnavailable` if there was no answer, and `RuntimeError` in another event loop. Each call
    is one transaction. In SQLite a call that has its connection goes on if its caller is cancelled or its deadline is
    over. In MySQL and MariaDB a claim takes four round trips and its commit, a replay one round trip.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        table: str = "idempotency_record",
        deadline: float = 5.0,
        owns_engine: bool = False,
    ) -> None:
        if not 0 < deadline < math.inf:
            raise ValueError(f"deadline must be a positive number of seconds, not {deadline}")
        check_driver(engine.dialect)
        check_pool(engine.pool)
        self._engine = engine
        self._records = records_for(engine.dialect.name, table)
        self._runner = Runner(self._records.backend, engine.dialect.paramstyle)
        self._deadline = deadline
        self._owns_engine = owns_engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[asyncio.Task[object]] = set()  # of SQLite, see `_to_its_end`

    async def create_schema(self) -> None:
        """Create the table if it is missing. For migrations, see `schema_of`."""
        await self._run(self._records.create)

    async def acquire(
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
        return await self._run(make)

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return await self._run(lambda: self._records.renew(claim, lease=lease))

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. Also deletes two expired records."""
        return await self._run(lambda: self._records.complete(claim, outcome, retention=retention))

    async def complete_in(
        self, connection: AsyncFramework, claim: Claim, outcome: bytes, *, retention: float
    ) -> bool:
        """
        Record the outcome in the caller's transaction: effect and record are committed together, or neither.

        Args:
            connection: An `AsyncSession` or `AsyncConnection`, or the connection of an asyncio driver, to the same
                database, inside the transaction that makes the effect; not committed here.
            retention: Seconds.
        Returns:
            False if the claim no longer holds the key, or its outcome is already recorded, even by this claim: then
            roll back, because the effect belongs to another run or was already made.
        Raises:
            TypeError, ValueError, IsolationConflict, StoreError, StoreUnavailable: See `PostgresStore.complete_in`.
        """
        caller = async_caller(connection, self._records.backend)
        if caller is None:
            takes = ("SQLAlchemy's AsyncSession or AsyncConnection", *_TAKES[self._records.backend])
            raise wrong_kind(self, connection, *takes, instead="SyncSQLAlchemyStore takes the others")
        steps = self._records.complete_in(caller, claim, outcome, retention=retention)
        return await caller.drive(translated(steps, partial(conflict_of, self._records.backend)))

    async def release(self, claim: Claim) -> bool:
        """See `Store.release`."""
        return await self._run(lambda: self._records.release(claim), removes=True)

    async def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`."""
        return await self._run(lambda: self._records.get(key))

    async def purge(self, *, limit: int = 1_000) -> int:
        """See `Purgeable.purge`. Rows that others have locked are left for the next purge."""
        return await self._run(lambda: self._records.purge(limit), removes=True)

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`. In key order."""
        return await self._run(lambda: self._records.scan(limit, cursor))

    async def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        return await self._run(lambda: self._records.forget(key), removes=True)

    async def aclose(self) -> None:
        """Wait for abandoned calls; dispose of the engine if the store owns it."""
        if self._calls:
            await asyncio.wait(self._calls)
        if self._owns_engine:
            await self._engine.dispose()

    async def _run(self, make: Callable[[], Steps[T]], *, removes: bool = False) -> T:
        loop = asyncio_loop(self)
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError(other_loop(self, "engine and one store"))
        self._loop = loop
        tries = self._runner.tries(removes=removes)
        try:
            async with asyncio.timeout(self._deadline):
                while True:
                    try:
                        if self._records.backend == "sqlite":
                            return await self._to_its_end(make)
                        async with self._engine.connect() as connection:
                            return await connection.run_sync(self._runner.run, make)
                    except Exception as error:
                        await asyncio.sleep(tries.failed(error))
        except TimeoutError as error:
            raise tries.too_late(self._deadline) from error

    async def _to_its_end(self, make: Callable[[], Steps[T]]) -> T:
        """
        Run the steps in a task that ends even if the caller is cancelled once it has a connection.

        A statement that is cancelled between its execution and the reading of its rows keeps SQLite's write lock, for
        every process, until Python's garbage collector finds its cursor: closing the connection does not end it.
        """
        has_connection = False

        async def call() -> T:
            nonlocal has_connection
            async with self._engine.connect() as connection:
                has_connection = True
                return await connection.run_sync(self._runner.run, make)

        task = asyncio.get_running_loop().create_task(call())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not has_connection:
                task.cancel()
            raise
