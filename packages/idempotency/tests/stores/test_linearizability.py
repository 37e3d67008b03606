"""
Sixteen callers, faults and leases of milliseconds: what they saw is explained by the rules, on every store.

Takeovers, expiries and lost replies are frequent here, so that each history holds some of them; the test that nothing
of the kind was missing is part of it. A checker counts only if it finds broken stores out: those are at the end.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import django_project
import psycopg
import pytest
from broken_line import Break, Line
from dynamodb_server import client_of
from histories import Seen, explains, fences_rise
from patience import PATIENCE
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine
from stores import KINDS, open_store

from idempotency._core.types import Acquired, Claim, Completed, Fingerprint, Owner, Reply, Running, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.store import Store
from idempotency.stores.django import SyncDjangoStore
from idempotency.stores.dynamodb import DynamoDBStore
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.stores.postgres import PostgresStore
from idempotency.stores.sqlalchemy import SQLAlchemyStore
from idempotency.stores.threaded import ThreadedStore
from idempotency.testing import Fault, FaultyStore
from idempotency.testing._spec import Acquire, Complete, Release, Renew

pytestmark = pytest.mark.anyio

CALLERS, CALLERS_A_KEY = 16, 4
ENGINES = ("postgresql+asyncpg", "mysql+asyncmy", "sqlite+aiosqlite")
# They read the clock at another instant than they take effect: see `stores._sql.postgresql`.
APART = frozenset({"PostgresStore", "SQLAlchemyStore", "DynamoDBStore"})
RESOLUTION = 0.003  # s: Redis counts in milliseconds, at both ends
FINGERPRINTS = (Fingerprint(b"\x01" * 32), Fingerprint(b"\x01" * 32), Fingerprint(b"\x02" * 32))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[*KINDS, *ENGINES, "django", "dynamodb"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opener = {"django": over_django, "dynamodb": over_dynamodb}.get(request.param)
    if request.param in ENGINES:
        opener = over_an_engine
    if opener is not None:
        async with opener(request, tmp_path) as store:
            yield store
        return
    location = ""
    if request.param == "sqlite":
        location = str(tmp_path / "records.db")
    elif request.param != "memory":
        location = request.getfixturevalue(f"{request.param}_url")
    async with open_store(request.param, location) as store:
        yield store


@asynccontextmanager
async def over_an_engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    dialect, driver = request.param.split("+")
    if dialect == "sqlite":
        url = f"sqlite+{driver}:///{tmp_path}/records.db"
    elif dialect == "mysql":
        url = f"mysql+{driver}://{request.getfixturevalue('mariadb_server_url')}"
    else:
        given = conninfo_to_dict(request.getfixturevalue("postgres_url"))
        url = f"postgresql+{driver}://{given.get('user', '')}@/{given.get('dbname', '')}?host={given['host']}"
    store = SQLAlchemyStore(create_async_engine(url, pool_size=8), owns_engine=True, deadline=PATIENCE)
    await store.create_schema()
    yield store
    await store.aclose()


@asynccontextmanager
async def over_django(_: pytest.FixtureRequest, __: Path) -> AsyncIterator[Store]:
    django_project.configure()
    inner = SyncDjangoStore()
    with pytest.raises(RuntimeError, match="ThreadedStore"):
        inner.create_schema()
    await anyio.to_thread.run_sync(inner.create_schema)
    store = ThreadedStore(inner)
    yield store
    await store.aclose()


@asynccontextmanager
async def over_dynamodb(request: pytest.FixtureRequest, _: Path) -> AsyncIterator[Store]:
    client = client_of(request.getfixturevalue("dynamodb_url"))
    store = DynamoDBStore(client, table="linear", max_clock_skew=0.0, max_threads=CALLERS)
    await store.create_schema()
    yield store
    await store.aclose()
    client.close()


def weather(chance: random.Random) -> Iterator[Fault | float | None]:
    """Of a hundred calls ten are lost, half of them after they took effect, and ten are late."""
    while True:
        drawn = chance.random()
        if drawn < 0.05:
            yield Fault.FAIL_BEFORE
        elif drawn < 0.10:
            yield Fault.FAIL_AFTER
        else:
            yield chance.uniform(0.0, 0.005) if drawn < 0.20 else None


_UNHEARD: ContextVar[list[tuple[float, float]]] = ContextVar(
    "tries of the present call that lost their connection"
)


class Retelling(PostgresStore):
    """Tells of each try whose answer was lost: it was a call of its own, whose effect may be over before the next."""

    async def _execute_once(self, statement: str, values: Any) -> Any:
        began = time.monotonic()
        try:
            return await super()._execute_once(statement, values)
        except psycopg.Error:
            _UNHEARD.get().append((began, time.monotonic()))
            raise


class Caller:
    """One of those who share a key: it claims, dawdles, and shows signs of life, settles or gives up."""

    def __init__(
        self, store: Store, key: StorageKey, chance: random.Random, history: list[Seen], pace: float
    ) -> None:
        self.store = store
        self.key = key
        self.chance = chance
        self.history = history
        self.pace = pace  # all durations are multiplied by it

    async def live(self, turns: int) -> None:
        for _ in range(turns):
            owner = Owner(secrets.token_bytes(16))
            reply = await self.acquire(owner)
            if reply is None and self.chance.random() < 0.5:
                reply = await self.acquire(
                    owner
                )  # its answer was lost: the claim is as it was granted then (R2)
            if isinstance(reply, Acquired):
                await self.run(reply.claim)
            elif reply is None:
                await self.release(Claim(self.key, owner, 0, 0))
            await anyio.sleep(self.chance.uniform(0.0, 0.01) * self.pace)

    async def run(self, claim: Claim) -> None:
        await anyio.sleep(self.chance.choice([0.0, 0.002, 0.02]) * self.pace)
        for _ in range(self.chance.choice([0, 1, 2, 2])):
            act = self.chance.choice([self.renew, self.renew, self.release, self.complete, self.complete])
            await act(claim)

    async def acquire(self, owner: Owner) -> Reply | None:
        chance = self.chance
        call = Acquire(
            self.key,
            chance.choice(FINGERPRINTS),
            owner,
            lease=chance.uniform(0.004, 0.02) * self.pace,
            retention=chance.uniform(0.02, 0.05) * self.pace,
            takeover=chance.random() < 0.9,
        )
        return await self.note(
            call,
            self.store.acquire(
                self.key,
                fingerprint=call.fingerprint,
                owner=owner,
                lease=call.lease,
                retention=call.retention,
                takeover=call.takeover,
            ),
        )

    async def renew(self, claim: Claim) -> None:
        lease = self.chance.uniform(0.004, 0.02) * self.pace
        await self.note(Renew(self.key, claim.owner, lease), self.store.renew(claim, lease=lease))

    async def complete(self, claim: Claim) -> None:
        outcome, retention = (
            b'{"n":%d}' % self.chance.randrange(10**9),
            self.chance.uniform(0.01, 0.05) * self.pace,
        )
        await self.note(
            Complete(self.key, claim.owner, outcome, retention),
            self.store.complete(claim, outcome, retention=retention),
        )

    async def release(self, claim: Claim) -> None:
        await self.note(Release(self.key, claim.owner), self.store.release(claim))

    async def note(self, call: Any, asked: Any) -> Any:
        unheard: list[tuple[float, float]] = []
        _UNHEARD.set(unheard)
        began = time.monotonic()
        try:
            reply = await asked
        except StoreUnavailable:
            reply = None
        self.history.append(Seen(call, reply, began, time.monotonic()))
        if not isinstance(call, Release):  # that one is never to be answered as if its first try had not been
            self.history += [Seen(call, None, *tried) for tried in unheard]
        return reply


async def histories(
    store: Store, *, seed: int, rounds: int, turns: int = 3, pace: float = 1.0
) -> list[list[Seen]]:
    """What was seen of each key, some keys at a time."""
    chance = random.Random(seed)
    faulty = FaultyStore(store)
    for method in ("acquire", "renew", "complete", "release"):
        faulty.inject(method, weather(chance))
    found: list[list[Seen]] = []
    for _ in range(rounds):
        async with anyio.create_task_group() as tasks:
            for _ in range(CALLERS // CALLERS_A_KEY):
                key, history = StorageKey(f"linear-{secrets.token_hex(8)}"), []
                found.append(history)
                for _ in range(CALLERS_A_KEY):
                    tasks.start_soon(Caller(faulty, key, chance, history, pace).live, turns)
    return found


def scarcest(found: list[list[Seen]]) -> int:
    """How often the rarest of what must be seen was seen."""
    replies = [seen.reply for history in found for seen in history]
    kinds = Counter("lost" if reply is None else type(reply).__name__ for reply in replies)
    takeovers = sum(isinstance(reply, Acquired) and reply.claim.attempt > 1 for reply in replies)
    return min(kinds["lost"], kinds["Running"], kinds["Completed"], kinds["bool"], takeovers)


@pytest.mark.timeout(400)
async def test_what_sixteen_callers_saw_is_explained_by_the_rules(store: Store) -> None:
    apart = type(store).__name__ in APART
    found: list[list[Seen]] = []
    for seed in range(7, 11):  # on a busy machine most leases lapse before their work is done: then once more
        rounds, pace = (4, 20.0) if isinstance(store, DynamoDBStore) else (16, 1.0)  # moto takes its time
        found += await histories(store, seed=seed, rounds=rounds, pace=pace)
        if scarcest(found) > 10:
            break
    assert scarcest(found) > 10, "these histories say too little"
    for history in found:
        told = "\n".join(map(repr, history))
        assert explains(history, resolution=RESOLUTION, apart=apart), told
        assert fences_rise(history), told


def storm(chance: random.Random) -> Iterator[Break | None]:
    while True:
        yield chance.choice(list(Break)) if chance.random() < 0.02 else None


async def test_what_they_saw_over_a_line_that_breaks_is_explained_too(
    postgres_line: tuple[Line, str],
) -> None:
    """The driver finds its connection gone, and the store asks again: nothing may have happened twice or be denied."""
    line, url = postgres_line
    async with AsyncConnectionPool(url, min_size=4, max_size=8, open=False) as pool:
        store = Retelling(pool, deadline=PATIENCE)
        await pool.wait()
        line.weather = storm(random.Random(1))
        found = await histories(store, seed=3, rounds=12)
        line.weather = iter(())
        await store.aclose()
    assert min(line.breaks[kind] for kind in Break) > 5, line.breaks
    for history in found:
        told = "\n".join(map(repr, history))
        assert explains(history, resolution=RESOLUTION, apart=True), told
        assert fences_rise(history), told


# Broken stores.


class _AnyOwnerCompletes(SyncMemoryStore):
    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        record = self.get(claim.key)
        owner = claim.owner if record is None else record.owner
        return super().complete(claim._replace(owner=owner), outcome, retention=retention)


class _ReleaseRemovesCompleted(SyncMemoryStore):
    def release(self, claim: Claim) -> bool:
        record = self.get(claim.key)
        return record is not None and record.owner == claim.owner and self.forget(claim.key)


class _GrantsUnderALease(SyncMemoryStore):
    def acquire(self, key: StorageKey, **asked: Any) -> Reply:
        reply = super().acquire(key, **asked)
        if isinstance(reply, Running) and reply.lease_left > 0.002:
            self.forget(key)
            reply = super().acquire(key, **asked)
        return reply


class _LastOutcomeStays(SyncMemoryStore):
    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        with self._lock:
            entry = self._owned(claim, self._clock())
            if entry is not None and entry.outcome is not None:
                entry.outcome = outcome
        return super().complete(claim, outcome, retention=retention)


class _ForgetsAnothersFingerprint(SyncMemoryStore):
    def acquire(self, key: StorageKey, *, fingerprint: Fingerprint, **asked: Any) -> Reply:
        reply = super().acquire(key, fingerprint=fingerprint, **asked)
        return reply._replace(fingerprint=fingerprint) if isinstance(reply, Completed) else reply


class _FenceStandsStill(SyncMemoryStore):
    def acquire(self, key: StorageKey, **asked: Any) -> Reply:
        reply = super().acquire(key, **asked)
        return Acquired(reply.claim._replace(fence=1)) if isinstance(reply, Acquired) else reply


@pytest.mark.parametrize(
    "broken",
    [
        _AnyOwnerCompletes,
        _ReleaseRemovesCompleted,
        _GrantsUnderALease,
        _LastOutcomeStays,
        _ForgetsAnothersFingerprint,
        _FenceStandsStill,
    ],
)
@pytest.mark.parametrize("apart", [False, True])
async def test_a_broken_store_is_found_out(broken: type[SyncMemoryStore], apart: bool) -> None:
    store = MemoryStore()
    store._store = broken()
    for seed in range(5):
        found = await histories(store, seed=seed, rounds=6)
        for history in found:
            if not (explains(history, resolution=RESOLUTION, apart=apart) and fences_rise(history)):
                return
    pytest.fail("every history of it was explained")


def test_a_store_may_read_the_clock_before_its_write_is_seen_and_after_what_it_read() -> None:
    """A renewal reads the clock at 51 ms and is committed at 89 ms; at 80 ms another caller finds the old lease."""
    key, fingerprint, (ours, other, third) = (
        StorageKey("k"),
        FINGERPRINTS[0],
        (Owner(bytes([n])) for n in range(3)),
    )

    def asked(owner: Owner, reply: Reply, began: float, ended: float) -> Seen:
        return Seen(Acquire(key, fingerprint, owner, 0.1, 1.0, takeover=True), reply, began, ended)

    history = [
        asked(ours, Acquired(Claim(key, ours, 1, 1)), 0.0, 0.001),
        Seen(Renew(key, ours, 0.1), True, 0.05, 0.09),
        asked(other, Running(fingerprint, 0.0195), 0.08, 0.081),
        asked(third, Running(fingerprint, 0.0555), 0.095, 0.096),
    ]
    assert explains(history, resolution=RESOLUTION, apart=True)
    assert not explains(history, resolution=RESOLUTION)
    history[-1] = asked(third, Running(fingerprint, 0.02), 0.095, 0.096)
    assert not explains(history, resolution=RESOLUTION, apart=True), "nobody read the clock before 50 ms"
