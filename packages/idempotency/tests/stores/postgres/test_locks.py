"""
Each lock of the PostgreSQL store, and each place where it reads the clock, guards against a race.

A race is stopped at the critical moment by an advisory lock, the gate: a statement waits there after it read the clock
or drew from the sequence. Each scenario runs on the store as it is, where its rule must hold, and on a store whose SQL
lacks the guard, where the rule must be broken.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import patience
import psycopg
import pytest
from patience import PATIENCE
from psycopg_pool import AsyncConnectionPool

from idempotency import Acquired, Claim, Fingerprint, Owner, StorageKey
from idempotency._core.types import Reply
from idempotency.stores._sql.postgresql_statements import Statements
from idempotency.stores.postgres import PostgresStore

pytestmark = pytest.mark.anyio

FINGERPRINT = Fingerprint(b"f" * 32)
KEY, OTHER = StorageKey("key"), StorageKey("other")
LEASE = 30.0
GATE = 0x6761_7465

_GATED_FUNCTIONS = f"""
CREATE OR REPLACE FUNCTION clock_then_gate() RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE read timestamptz := clock_timestamp();
BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN read; END $$;
CREATE OR REPLACE FUNCTION fence_then_gate(sequence regclass) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE drawn bigint := nextval(sequence);
BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN drawn; END $$;
"""
_FIRST_CLOCK, _FENCE = "SELECT clock_timestamp() AS now, nextval(", "nextval("


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Race:
    """A store on a table of its own, perhaps without a guard in its SQL, and an administrator's connection."""

    def __init__(
        self, pool: AsyncConnectionPool[Any], table: str, admin: psycopg.AsyncConnection[Any]
    ) -> None:
        self.pool = pool
        self.table = table
        self.admin = admin
        self.store = PostgresStore(pool, table=table, deadline=PATIENCE)

    def remove_guard(self, statement: str, guard: str, replacement: str) -> None:
        """Replace *guard* in the store's SQL."""
        self.store = self._changed(statement, guard, replacement)

    def stopping_at_gate(self, guard: str, replacement: str) -> PostgresStore:
        """The same store, whose `acquire` stops at the gate."""
        return self._changed("acquire", guard, replacement)

    def _changed(self, statement: str, old: str, new: str) -> PostgresStore:
        changed = PostgresStore(self.pool, table=self.table, deadline=PATIENCE)
        text = getattr(self.store._sql, statement)
        assert old in text, "there is no such guard"
        changed._sql = Statements(**{**self.store._sql._asdict(), statement: text.replace(old, new)})
        return changed

    async def scalar(self, query: str) -> Any:
        row = await (await self.admin.execute(query.format(table=self.table).encode())).fetchone()
        return row and row[0]

    async def now(self) -> Any:
        """The server's time."""
        return await self.scalar("SELECT clock_timestamp()")

    async def since(self, key: StorageKey) -> Any:
        """The time from which the lease of *key* counts; None if it has no record."""
        return await self.scalar(
            f"SELECT lease_until - interval '{LEASE} s' FROM {{table}} WHERE key = '{key}'"
        )

    async def close_gate(self) -> None:
        await self.scalar(f"SELECT pg_advisory_lock({GATE})::text")

    async def open_gate(self) -> None:
        assert await self.scalar(f"SELECT pg_advisory_unlock({GATE})")

    async def until_waiting(self, callers: int = 1) -> None:
        """Return once this number of callers wait for a lock."""
        waiting = f"SELECT count(*) >= {callers} FROM pg_locks WHERE NOT granted"
        await patience.until(lambda: self.scalar(waiting))


async def acquire(
    store: PostgresStore, key: StorageKey = KEY, *, lease: float = LEASE, retention: float = 60.0
) -> Reply:
    owner = Owner(secrets.token_bytes(16))
    return await store.acquire(key, fingerprint=FINGERPRINT, owner=owner, lease=lease, retention=retention)


async def granted(store: PostgresStore, key: StorageKey = KEY, **durations: float) -> Claim:
    reply = await acquire(store, key, **durations)
    assert isinstance(reply, Acquired)
    return reply.claim


async def lapsed_claim(race: Race, key: StorageKey = KEY, *, retention: float = 60.0) -> Claim:
    """A claim whose lease has lapsed, and with a short *retention* whose record has expired."""
    claim = await granted(race.store, key, lease=0.001, retention=retention)
    await (patience.until_lapsed if retention > 1 else patience.until_forgotten)(race.store, key)
    return claim


async def wait_until_done_or_waiting(race: Race, task: asyncio.Future[Any], callers: int) -> None:
    """Return once *task* is done, or this number of callers wait for a lock."""
    waiting = asyncio.ensure_future(race.until_waiting(callers))
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def fences_rise(race: Race) -> bool:
    """One caller draws its fence and stalls; another is granted the key; then the first continues."""
    await race.close_gate()
    first = asyncio.create_task(acquire(race.stopping_at_gate(_FENCE, "fence_then_gate(")))
    await race.until_waiting()
    second = asyncio.create_task(acquire(race.store, lease=0.01))
    await wait_until_done_or_waiting(race, second, 2)
    await patience.until_lapsed(race.store, KEY)
    await race.open_gate()
    claims = [reply.claim for reply in (await first, await second) if isinstance(reply, Acquired)]
    claims.sort(key=lambda claim: claim.attempt)
    return [claim.fence for claim in claims] == sorted(claim.fence for claim in claims)


async def lease_counts_from_removal(
    race: Race, remove: Callable[[Claim], Awaitable[object]], *, retention: float = 60.0
) -> bool:
    """A caller is about to insert a row when the existing one is removed: its lease must count from the removal."""
    old = await lapsed_claim(race, retention=retention)
    await race.close_gate()
    taking = asyncio.create_task(
        granted(race.stopping_at_gate(_FIRST_CLOCK, "SELECT clock_then_gate() AS now, nextval("))
    )
    await race.until_waiting()
    removing = asyncio.ensure_future(remove(old))
    await wait_until_done_or_waiting(race, removing, 2)
    opened = await race.now()
    await race.open_gate()
    await asyncio.gather(taking, removing)
    since = await race.since(KEY)  # a `forget` that waited has removed the new record too
    return since is None or bool(since >= opened)


async def lease_counts_from_a_release(race: Race) -> bool:
    return await lease_counts_from_removal(race, race.store.release)


async def lease_counts_from_a_forget(race: Race) -> bool:
    return await lease_counts_from_removal(race, lambda old: race.store.forget(old.key))


async def lease_counts_from_a_purge(race: Race) -> bool:
    return await lease_counts_from_removal(race, lambda _: race.store.purge(), retention=0.001)


async def lease_counts_from_a_sweep(race: Race) -> bool:
    busy = await granted(race.store, OTHER)
    return await lease_counts_from_removal(
        race, lambda _: race.store.complete(busy, b"{}", retention=60.0), retention=0.001
    )


async def a_sweep_does_not_wait_for_locks(race: Race) -> bool:
    """A completion holds an expired row while its key is being claimed: waiting for that lock would be a deadlock."""
    busy = await granted(race.store, OTHER)
    await lapsed_claim(race, retention=0.001)
    await race.close_gate()
    taking = asyncio.create_task(
        acquire(race.stopping_at_gate(_FIRST_CLOCK, "SELECT clock_then_gate() AS now, nextval("))
    )
    await race.until_waiting()
    completing = asyncio.ensure_future(race.store.complete(busy, b"{}", retention=60.0))
    await wait_until_done_or_waiting(race, completing, 2)
    waited = not completing.done()
    await race.open_gate()
    await asyncio.gather(taking, completing, return_exceptions=True)
    return not waited


async def behind_a_row_lock(
    race: Race, call: Callable[[], Awaitable[object]], *, until: str = "SELECT true"
) -> tuple[Any, Any]:
    """The answer of a *call* that waited for the row's lock, and the server's time when the lock was released."""
    async with race.pool.connection() as other, other.transaction():
        await other.execute(f"SELECT FROM {race.table} FOR UPDATE".encode())
        waiting = asyncio.ensure_future(call())
        await race.until_waiting()
        await patience.until(lambda: race.scalar(until))
        freed = await race.now()
    return await waiting, freed


async def a_takeover_counts_from_the_lock(race: Race) -> bool:
    await lapsed_claim(race)
    _, freed = await behind_a_row_lock(race, lambda: granted(race.store))
    return bool(await race.since(KEY) >= freed)


async def a_renewal_counts_from_the_lock(race: Race) -> bool:
    claim = await lapsed_claim(race)
    _, freed = await behind_a_row_lock(race, lambda: race.store.renew(claim, lease=LEASE))
    return bool(await race.since(KEY) >= freed)


async def a_completion_counts_from_the_lock(race: Race) -> bool:
    claim = await granted(race.store)
    _, freed = await behind_a_row_lock(race, lambda: race.store.complete(claim, b"{}", retention=60.0))
    return bool(await race.scalar("SELECT completed_at FROM {table}") >= freed)


async def a_record_that_expires_during_the_wait_is_absent(race: Race) -> bool:
    claim = await granted(race.store, lease=0.5, retention=0.001)
    answer, _ = await behind_a_row_lock(
        race,
        lambda: race.store.complete(claim, b"{}", retention=60.0),
        until="SELECT clock_timestamp() > expires_at FROM {table}",
    )
    return answer is False


@dataclass(frozen=True)
class Guard:
    """A guard in a statement, its replacement, and the race whose rule is broken without it."""

    statement: str
    guard: str
    replacement: str
    race: Callable[[Race], Awaitable[bool]]


_LOCK = "pg_advisory_xact_lock(hashtextextended(%(key)s, 0))::text"
_TRY = "pg_try_advisory_xact_lock(hashtextextended(key, 0))"
_WAIT = "pg_advisory_xact_lock(hashtextextended(key, 0))::text = ''"
_CLOCK, _EARLIER = "SELECT clock_timestamp() AS now OFFSET 0", "SELECT statement_timestamp() AS now OFFSET 0"
GUARDS = {
    "acquire draws its fence under the lock of the key": Guard("acquire", _LOCK, "''::text", fences_rise),
    "release removes a row under the lock of its key": Guard(
        "release", _LOCK, "''::text", lease_counts_from_a_release
    ),
    "forget removes a row under the lock of its key": Guard(
        "forget", _LOCK, "''::text", lease_counts_from_a_forget
    ),
    "purge removes a row under the lock of its key": Guard("purge", _TRY, "true", lease_counts_from_a_purge),
    "a sweep removes a row under the lock of its key": Guard(
        "complete", _TRY, "true", lease_counts_from_a_sweep
    ),
    "a sweep only tries these locks": Guard("complete", _TRY, _WAIT, a_sweep_does_not_wait_for_locks),
    "acquire reads the clock after it has the lock": Guard(
        "acquire", _CLOCK, _EARLIER, a_takeover_counts_from_the_lock
    ),
    "renew reads the clock after it has the lock": Guard(
        "renew", "clock_timestamp() + make", "statement_timestamp() + make", a_renewal_counts_from_the_lock
    ),
    "complete reads the clock after it has the lock": Guard(
        "complete", _CLOCK, _EARLIER, a_completion_counts_from_the_lock
    ),
    "expiry is decided after the lock is held": Guard(
        "complete",
        "expires_at > clock_timestamp()",
        "expires_at > statement_timestamp()",
        a_record_that_expires_during_the_wait_is_absent,
    ),
}


@pytest.fixture
async def race(postgres_url: str) -> AsyncIterator[Race]:
    table = f"t_{secrets.token_hex(6)}"
    admin = await psycopg.AsyncConnection.connect(postgres_url, autocommit=True)
    async with AsyncConnectionPool(postgres_url, min_size=1, max_size=6, open=False) as pool, admin:
        race = Race(pool, table, admin)
        await admin.execute(_GATED_FUNCTIONS.encode())
        await race.store.create_schema()
        yield race
        await admin.execute(f"DROP TABLE {table}; DROP SEQUENCE {table}_fence".encode())


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
class TestGuards:
    async def test_the_rule_holds_with_the_guard(self, race: Race, guard: Guard) -> None:
        assert await guard.race(race)

    async def test_the_rule_is_broken_without_the_guard(self, race: Race, guard: Guard) -> None:
        race.remove_guard(guard.statement, guard.guard, guard.replacement)
        assert not await guard.race(race)
