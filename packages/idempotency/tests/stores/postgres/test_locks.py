"""
Each lock of the PostgreSQL store, and each place where it reads the clock, has a race that goes wrong without it.

A race is stopped at its worst moment by a gate that the test holds: a statement whose clock or whose sequence is made
to wait there. Every scenario runs on the store as it is, where its rule must hold, and on one whose SQL lacks the
guard, where it must not.
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

_PAUSES = f"""
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
    """A store on a table of its own, perhaps with a guard taken out of its SQL, and the test's hand on the server."""

    def __init__(
        self, pool: AsyncConnectionPool[Any], table: str, hand: psycopg.AsyncConnection[Any]
    ) -> None:
        self.pool = pool
        self.table = table
        self.hand = hand
        self.store = PostgresStore(pool, table=table, deadline=PATIENCE)

    def without(self, statement: str, guard: str, instead: str) -> None:
        """Take *guard* out of the store's SQL."""
        self.store = self._changed(statement, guard, instead)

    def stopping(self, guard: str, instead: str) -> PostgresStore:
        """The same store, whose `acquire` stops at the gate."""
        return self._changed("acquire", guard, instead)

    def _changed(self, statement: str, old: str, new: str) -> PostgresStore:
        changed = PostgresStore(self.pool, table=self.table, deadline=PATIENCE)
        text = getattr(self.store._sql, statement)
        assert old in text, "there is no such guard"
        changed._sql = Statements(**{**self.store._sql._asdict(), statement: text.replace(old, new)})
        return changed

    async def scalar(self, query: str) -> Any:
        row = await (await self.hand.execute(query.format(table=self.table).encode())).fetchone()
        return row and row[0]

    async def now(self) -> Any:
        """The server's time."""
        return await self.scalar("SELECT clock_timestamp()")

    async def since(self, key: StorageKey) -> Any:
        """From when the lease of *key* counts; None where it has no record."""
        return await self.scalar(
            f"SELECT lease_until - interval '{LEASE} s' FROM {{table}} WHERE key = '{key}'"
        )

    async def close_gate(self) -> None:
        await self.scalar(f"SELECT pg_advisory_lock({GATE})::text")

    async def open_gate(self) -> None:
        assert await self.scalar(f"SELECT pg_advisory_unlock({GATE})")

    async def until_waiting(self, callers: int = 1) -> None:
        """Return once so many callers wait for a lock."""
        waiting = f"SELECT count(*) >= {callers} FROM pg_locks WHERE NOT granted"
        await patience.until(lambda: self.scalar(waiting))


async def ask(
    store: PostgresStore, key: StorageKey = KEY, *, lease: float = LEASE, retention: float = 60.0
) -> Reply:
    owner = Owner(secrets.token_bytes(16))
    return await store.acquire(key, fingerprint=FINGERPRINT, owner=owner, lease=lease, retention=retention)


async def granted(store: PostgresStore, key: StorageKey = KEY, **durations: float) -> Claim:
    reply = await ask(store, key, **durations)
    assert isinstance(reply, Acquired)
    return reply.claim


async def until_lapsed(race: Race, key: StorageKey = KEY, *, retention: float = 60.0) -> Claim:
    """A claim whose lease is over, and with a short *retention* the whole record."""
    claim = await granted(race.store, key, lease=0.001, retention=retention)
    await (patience.lapsed if retention > 1 else patience.forgotten)(race.store, key)
    return claim


async def settled_or_waiting(race: Race, task: asyncio.Future[Any], callers: int) -> None:
    """Return once *task* is done, or waits for a lock as the last of so many."""
    waiting = asyncio.ensure_future(race.until_waiting(callers))
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def fences_rise(race: Race) -> bool:
    """One caller draws its fence and stalls; another comes and is granted the key; then the first goes on."""
    await race.close_gate()
    first = asyncio.create_task(ask(race.stopping(_FENCE, "fence_then_gate(")))
    await race.until_waiting()
    second = asyncio.create_task(ask(race.store, lease=0.01))
    await settled_or_waiting(race, second, 2)
    await patience.lapsed(race.store, KEY)
    await race.open_gate()
    claims = [reply.claim for reply in (await first, await second) if isinstance(reply, Acquired)]
    claims.sort(key=lambda claim: claim.attempt)
    return [claim.fence for claim in claims] == sorted(claim.fence for claim in claims)


async def lease_counts_from_removal(
    race: Race, remove: Callable[[Claim], Awaitable[object]], *, retention: float = 60.0
) -> bool:
    """A caller is on its way to insert a row when the one that stands is removed: from then on the key is its own."""
    old = await until_lapsed(race, retention=retention)
    await race.close_gate()
    taking = asyncio.create_task(
        granted(race.stopping(_FIRST_CLOCK, "SELECT clock_then_gate() AS now, nextval("))
    )
    await race.until_waiting()
    removing = asyncio.ensure_future(remove(old))
    await settled_or_waiting(race, removing, 2)
    opened = await race.now()
    await race.open_gate()
    await asyncio.gather(taking, removing)
    since = await race.since(KEY)  # a `forget` that had to wait has removed the new record, too
    return since is None or bool(since >= opened)


async def while_released(race: Race) -> bool:
    return await lease_counts_from_removal(race, race.store.release)


async def while_forgotten(race: Race) -> bool:
    return await lease_counts_from_removal(race, lambda old: race.store.forget(old.key))


async def while_purged(race: Race) -> bool:
    return await lease_counts_from_removal(race, lambda _: race.store.purge(), retention=0.001)


async def while_swept(race: Race) -> bool:
    busy = await granted(race.store, OTHER)
    return await lease_counts_from_removal(
        race, lambda _: race.store.complete(busy, b"{}", retention=60.0), retention=0.001
    )


async def a_sweep_waits_for_nobody(race: Race) -> bool:
    """A completion holds an expired row while its key is being taken: it must not wait for who waits for it."""
    busy = await granted(race.store, OTHER)
    await until_lapsed(race, retention=0.001)
    await race.close_gate()
    taking = asyncio.create_task(
        ask(race.stopping(_FIRST_CLOCK, "SELECT clock_then_gate() AS now, nextval("))
    )
    await race.until_waiting()
    completing = asyncio.ensure_future(race.store.complete(busy, b"{}", retention=60.0))
    await settled_or_waiting(race, completing, 2)
    waited = not completing.done()
    await race.open_gate()
    await asyncio.gather(taking, completing, return_exceptions=True)
    return not waited


async def behind_a_row_lock(
    race: Race, call: Callable[[], Awaitable[object]], *, until: str = "SELECT true"
) -> tuple[Any, Any]:
    """Returns the answer of a *call* that waited for the row until a query was true, and the time by the server."""
    async with race.pool.connection() as other, other.transaction():
        await other.execute(f"SELECT FROM {race.table} FOR UPDATE".encode())
        waiting = asyncio.ensure_future(call())
        await race.until_waiting()
        await patience.until(lambda: race.scalar(until))
        freed = await race.now()
    return await waiting, freed


async def a_takeover_counts_from_the_lock(race: Race) -> bool:
    await until_lapsed(race)
    _, freed = await behind_a_row_lock(race, lambda: granted(race.store))
    return bool(await race.since(KEY) >= freed)


async def a_renewal_counts_from_the_lock(race: Race) -> bool:
    claim = await until_lapsed(race)
    _, freed = await behind_a_row_lock(race, lambda: race.store.renew(claim, lease=LEASE))
    return bool(await race.since(KEY) >= freed)


async def a_completion_counts_from_the_lock(race: Race) -> bool:
    claim = await granted(race.store)
    _, freed = await behind_a_row_lock(race, lambda: race.store.complete(claim, b"{}", retention=60.0))
    return bool(await race.scalar("SELECT completed_at FROM {table}") >= freed)


async def what_expires_at_the_lock_is_gone(race: Race) -> bool:
    claim = await granted(race.store, lease=0.5, retention=0.001)
    answer, _ = await behind_a_row_lock(
        race,
        lambda: race.store.complete(claim, b"{}", retention=60.0),
        until="SELECT clock_timestamp() > expires_at FROM {table}",
    )
    return answer is False


@dataclass(frozen=True)
class Guard:
    """A guard taken out of a statement, and the race that then goes wrong."""

    statement: str
    guard: str
    instead: str
    race: Callable[[Race], Awaitable[bool]]


_LOCK = "pg_advisory_xact_lock(hashtextextended(%(key)s, 0))::text"
_TRY = "pg_try_advisory_xact_lock(hashtextextended(key, 0))"
_WAIT = "pg_advisory_xact_lock(hashtextextended(key, 0))::text = ''"
_CLOCK, _EARLIER = "SELECT clock_timestamp() AS now OFFSET 0", "SELECT statement_timestamp() AS now OFFSET 0"
GUARDS = {
    "acquire draws its fence under the lock of the key": Guard("acquire", _LOCK, "''::text", fences_rise),
    "release removes a row under the lock of its key": Guard("release", _LOCK, "''::text", while_released),
    "forget removes a row under the lock of its key": Guard("forget", _LOCK, "''::text", while_forgotten),
    "purge removes a row under the lock of its key": Guard("purge", _TRY, "true", while_purged),
    "a sweep removes a row under the lock of its key": Guard("complete", _TRY, "true", while_swept),
    "a sweep only tries these locks": Guard("complete", _TRY, _WAIT, a_sweep_waits_for_nobody),
    "acquire reads the clock behind the lock": Guard(
        "acquire", _CLOCK, _EARLIER, a_takeover_counts_from_the_lock
    ),
    "renew reads the clock behind the lock": Guard(
        "renew", "clock_timestamp() + make", "statement_timestamp() + make", a_renewal_counts_from_the_lock
    ),
    "complete reads the clock behind the lock": Guard(
        "complete", _CLOCK, _EARLIER, a_completion_counts_from_the_lock
    ),
    "expiry is judged behind the lock": Guard(
        "complete",
        "expires_at > clock_timestamp()",
        "expires_at > statement_timestamp()",
        what_expires_at_the_lock_is_gone,
    ),
}


@pytest.fixture
async def race(postgres_url: str) -> AsyncIterator[Race]:
    table = f"t_{secrets.token_hex(6)}"
    hand = await psycopg.AsyncConnection.connect(postgres_url, autocommit=True)
    async with AsyncConnectionPool(postgres_url, min_size=1, max_size=6, open=False) as pool, hand:
        race = Race(pool, table, hand)
        await hand.execute(_PAUSES.encode())
        await race.store.create_schema()
        yield race
        await hand.execute(f"DROP TABLE {table}; DROP SEQUENCE {table}_fence".encode())


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
class TestGuards:
    async def test_the_store_keeps_the_rule(self, race: Race, guard: Guard) -> None:
        assert await guard.race(race)

    async def test_without_the_guard_it_is_broken(self, race: Race, guard: Guard) -> None:
        race.without(guard.statement, guard.guard, guard.instead)
        assert not await guard.race(race)
