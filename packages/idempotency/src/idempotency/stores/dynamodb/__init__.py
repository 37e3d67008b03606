"""
Records in a table of Amazon DynamoDB, by conditional writes.

DynamoDB's conditions cannot read a clock, so leases are measured by the callers' clocks, which must agree to within
`max_clock_skew`: see docs/stores.md before you trust this store with money.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from idempotency._runtime.extras import missing

try:
    import boto3  # noqa: F401
except ModuleNotFoundError as _error:
    raise missing("dynamodb", "DynamoDBStore", _error) from _error

from idempotency._core.types import Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._runtime.threads import Threads
from idempotency.store import Page
from idempotency.stores.dynamodb.calls import Calls
from idempotency.stores.dynamodb.records import Records
from idempotency.stores.dynamodb.schema import create_table

if TYPE_CHECKING:
    from botocore.client import BaseClient

__all__ = ["DynamoDBStore", "SyncDynamoDBStore"]


class SyncDynamoDBStore:
    """
    A store in one table, for threads and processes; each process needs a client of its own.

    Args:
        client: `boto3.client("dynamodb", ...)`; it belongs to the caller. Its `botocore.config.Config` limits the time
            and the retries of a call: by default minutes, see docs/stores.md.
        table: The name of the table; `create_schema` creates it.
        max_clock_skew: Seconds by which the clocks of two callers may differ; use the same value for all callers. A
            lapsed lease is taken over that much later. A caller whose clock differs from the server's by more than
            half of it, plus the one second that HTTP dates round off, gets `StoreUnavailable`.
        clock: Seconds since the epoch, for tests; not compared with the server's.
        owns_client: Whether `close` also closes *client*.

    Each call is atomic: one conditional write of one item. A first run costs two writes, a replay of up to 8 KiB one; a
    longer outcome takes one more item for each 390,000 bytes.
    """

    def __init__(
        self,
        client: BaseClient,
        *,
        table: str = "idempotency_record",
        max_clock_skew: float = 2.0,
        clock: Callable[[], float] | None = None,
        owns_client: bool = False,
    ) -> None:
        if not 0 <= max_clock_skew < math.inf:
            raise ValueError(f"max_clock_skew must be a number of seconds, 0 or more, not {max_clock_skew}")
        if not hasattr(client, "put_item"):
            raise TypeError(f'client must be boto3.client("dynamodb"), not this {type(client).__name__}')
        self._client = client
        self._owns_client = owns_client
        self._calls = Calls(client, table, clock, max_clock_skew)
        self._records = Records(self._calls, max_clock_skew)

    def create_schema(self) -> None:
        """Create the table (billed per request) if it is missing, and let DynamoDB delete expired items."""
        create_table(self._calls)

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
        """See `Store.acquire`. One write; a second one if there is a record, or the reads of a long outcome."""
        return self._records.acquire(
            key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
        )

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return self._records.renew(claim, lease=lease)

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. The parts of a long outcome are written first."""
        return self._records.complete(claim, outcome, retention=retention)

    def release(self, claim: Claim) -> bool:
        """See `Store.release`. The fence stays for a minute, until DynamoDB deletes the item."""
        return self._records.release(claim)

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`. A consistent read."""
        return self._records.get(key)

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `Inspectable.scan`. In DynamoDB's order; it reads, and pays for, every item on the way."""
        return self._records.scan(limit, cursor)

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`. Also deletes records that cannot be read."""
        return self._records.forget(key)

    def close(self) -> None:
        """Close the client if the store owns it."""
        if self._owns_client:
            self._client.close()


class DynamoDBStore:
    """
    `SyncDynamoDBStore` for an event loop, asyncio or trio: each call runs in a worker thread.

    Args:
        max_threads: The number of calls that may run at once; give the client as many connections
            (`max_pool_connections`).
        client, table, max_clock_skew, clock, owns_client: See `SyncDynamoDBStore`.
    """

    def __init__(
        self,
        client: BaseClient,
        *,
        table: str = "idempotency_record",
        max_clock_skew: float = 2.0,
        clock: Callable[[], float] | None = None,
        max_threads: int = 10,
        owns_client: bool = False,
    ) -> None:
        if max_threads < 1:
            raise ValueError(f"max_threads must be at least 1, not {max_threads}")
        self._store = SyncDynamoDBStore(
            client, table=table, max_clock_skew=max_clock_skew, clock=clock, owns_client=owns_client
        )
        self._threads = Threads(max_threads, "idempotency-dynamodb")

    async def create_schema(self) -> None:
        """See `SyncDynamoDBStore.create_schema`."""
        await self._threads.run(self._store.create_schema)

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
        """See `SyncDynamoDBStore.acquire`."""
        call: Callable[[], Reply] = lambda: self._store.acquire(  # noqa: E731 - mypy cannot join the replies
            key, fingerprint=fingerprint, owner=owner, lease=lease, retention=retention, takeover=takeover
        )
        return await self._threads.run(call)

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`."""
        return await self._threads.run(lambda: self._store.renew(claim, lease=lease))

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `SyncDynamoDBStore.complete`."""
        return await self._threads.run(lambda: self._store.complete(claim, outcome, retention=retention))

    async def release(self, claim: Claim) -> bool:
        """See `SyncDynamoDBStore.release`."""
        return await self._threads.run(lambda: self._store.release(claim))

    async def get(self, key: StorageKey) -> Record | None:
        """See `SyncDynamoDBStore.get`."""
        return await self._threads.run(lambda: self._store.get(key))

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SyncDynamoDBStore.scan`."""
        return await self._threads.run(lambda: self._store.scan(limit=limit, cursor=cursor))

    async def forget(self, key: StorageKey) -> bool:
        """See `SyncDynamoDBStore.forget`."""
        return await self._threads.run(lambda: self._store.forget(key))

    async def aclose(self) -> None:
        """Let the threads end, and close the client if the store owns it."""
        await self._threads.run(self._store.close)
        self._threads.close()
