"""
Sixteen callers, faults and leases of milliseconds: the histories of every store are linearizable.

Takeovers, expiries and lost replies are frequent, and each run must contain enough of them. The checker itself must
reject the histories of broken stores, which are at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import django_project
import pytest
from concurrent_callers import CALLERS, FINGERPRINTS, RESOLUTION, histories
from dynamodb_server import client_of
from histories import ObservedCall, fences_increase, is_linearizable
from patience import PATIENCE
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from stores import KINDS, open_store

from idempotency._core.types import Acquired, Claim, Completed, Fingerprint, Owner, Reply, Running, StorageKey
from idempotency.store import Store
from idempotency.stores.django import SyncDjangoStore
from idempotency.stores.dynamodb import DynamoDBStore
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.stores.sqlalchemy import SQLAlchemyStore, SyncSQLAlchemyStore
from idempotency.stores.threaded import ThreadedStore
from idempotency.testing._spec import Acquire, Renew

pytestmark = pytest.mark.anyio

ENGINES = ("postgresql+asyncpg", "mysql+asyncmy", "sqlite+aiosqlite")
SYNC_ENGINES = ("postgresql+psycopg", "mysql+pymysql", "sqlite+pysqlite")
DJANGO = ("django", "django on postgresql", "django on mysql")
# Their calls take effect at another instant than they read the clock: see `stores._sql.postgresql_statements`, and
# `stores.dynamodb`, where it is the caller's clock.
SEPARATE_CLOCK_READ = frozenset({"postgres", *ENGINES, *SYNC_ENGINES, *DJANGO, "dynamodb"})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[*KINDS, *ENGINES, *SYNC_ENGINES, *DJANGO, "dynamodb"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opener = over_dynamodb if request.param == "dynamodb" else None
    if request.param in ENGINES:
        opener = over_an_engine
    elif request.param in SYNC_ENGINES:
        opener = over_a_sync_engine
    elif request.param in DJANGO:
        opener = over_django
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


def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database, for the dialect and driver of the parameter."""
    kind: str = request.param
    if kind.startswith("sqlite"):
        return f"{kind}:///{tmp_path}/records.db"
    if kind.startswith("mysql"):
        return f"{kind}://{request.getfixturevalue('mariadb_server_url')}"
    given = conninfo_to_dict(request.getfixturevalue("postgres_url"))
    return f"{kind}://{given.get('user', '')}@/{given.get('dbname', '')}?host={given['host']}"


@asynccontextmanager
async def over_an_engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    engine = create_async_engine(engine_url(request, tmp_path), pool_size=8)
    store = SQLAlchemyStore(engine, owns_engine=True, deadline=PATIENCE)
    await store.create_schema()
    yield store
    await store.aclose()


@asynccontextmanager
async def over_a_sync_engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    engine = create_engine(engine_url(request, tmp_path), pool_size=8)
    inner = SyncSQLAlchemyStore(engine, owns_engine=True)
    inner.create_schema()
    store = ThreadedStore(inner)
    yield store
    await store.aclose()


@asynccontextmanager
async def over_django(request: pytest.FixtureRequest, _: Path) -> AsyncIterator[Store]:
    django_project.configure()
    _, _, vendor = request.param.partition(" on ")
    if vendor:
        server = "postgres_url" if vendor == "postgresql" else "mariadb_server_url"
        django_project.add_database(vendor, request.getfixturevalue(server))
    inner = SyncDjangoStore(vendor or "default")
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


def rarest_event_count(found: list[list[ObservedCall]]) -> int:
    """The count of the rarest of the events that a history must hold."""
    replies = [seen.reply for history in found for seen in history]
    kinds = Counter("lost" if reply is None else type(reply).__name__ for reply in replies)
    takeovers = sum(isinstance(reply, Acquired) and reply.claim.attempt > 1 for reply in replies)
    return min(kinds["lost"], kinds["Running"], kinds["Completed"], kinds["bool"], takeovers)


@pytest.mark.timeout(400)
async def test_histories_of_sixteen_callers_are_linearizable(
    store: Store, request: pytest.FixtureRequest
) -> None:
    kind = request.node.callspec.params["store"]
    found: list[list[ObservedCall]] = []
    # More rounds for a busy machine, where most leases lapse before the work is done.
    for seed in range(7, 11):
        rounds, pace = (4, 20.0) if kind == "dynamodb" else (16, 1.0)  # moto is slow
        found += await histories(store, seed=seed, rounds=rounds, pace=pace)
        if rarest_event_count(found) > 10:
            break
    assert rarest_event_count(found) > 10, "these histories have too few events of some kind"
    for history in found:
        history_text = "\n".join(map(repr, history))
        assert is_linearizable(
            history, resolution=RESOLUTION, separate_clock_read=kind in SEPARATE_CLOCK_READ
        ), history_text
        assert fences_increase(history), history_text


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
    def acquire(self, key: StorageKey, **options: Any) -> Reply:
        reply = super().acquire(key, **options)
        if isinstance(reply, Running) and reply.lease_left > 0.002:
            self.forget(key)
            reply = super().acquire(key, **options)
        return reply


class _LastOutcomeStays(SyncMemoryStore):
    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        with self._lock:
            entry = self._owned(claim, self._clock())
            if entry is not None and entry.outcome is not None:
                entry.outcome = outcome
        return super().complete(claim, outcome, retention=retention)


class _ForgetsAnothersFingerprint(SyncMemoryStore):
    def acquire(self, key: StorageKey, *, fingerprint: Fingerprint, **options: Any) -> Reply:
        reply = super().acquire(key, fingerprint=fingerprint, **options)
        return reply._replace(fingerprint=fingerprint) if isinstance(reply, Completed) else reply


class _FenceStandsStill(SyncMemoryStore):
    def acquire(self, key: StorageKey, **options: Any) -> Reply:
        reply = super().acquire(key, **options)
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
@pytest.mark.parametrize("separate_clock_read", [False, True])
async def test_histories_of_a_broken_store_are_not_linearizable(
    broken: type[SyncMemoryStore], separate_clock_read: bool
) -> None:
    store = MemoryStore()
    store._store = broken()
    for seed in range(5):
        found = await histories(store, seed=seed, rounds=6)
        for history in found:
            if not (
                is_linearizable(history, resolution=RESOLUTION, separate_clock_read=separate_clock_read)
                and fences_increase(history)
            ):
                return
    pytest.fail("every history of the broken store was linearizable")


KEY, LEASE = StorageKey("k"), 0.1
OURS, OTHER, THIRD = (Owner(bytes([number])) for number in range(3))


def observed_acquire(owner: Owner, reply: Reply, began: float, ended: float) -> ObservedCall:
    return ObservedCall(Acquire(KEY, FINGERPRINTS[0], owner, LEASE, 1.0, takeover=True), reply, began, ended)


def test_a_renewal_may_take_effect_at_any_time_between_its_call_and_its_answer() -> None:
    """It asks for 50 ms. Only where it takes effect after 50 ms does it extend the lease, which ends at 100 ms."""
    history = [
        observed_acquire(OURS, Acquired(Claim(KEY, OURS, 1, 1)), 0.0, 0.001),
        ObservedCall(Renew(KEY, OURS, 0.05), True, 0.02, 0.08),
        observed_acquire(OTHER, Running(FINGERPRINTS[0], 0.07), 0.03, 0.0301),
        observed_acquire(THIRD, Running(FINGERPRINTS[0], 0.069), 0.031, 0.0311),
        observed_acquire(THIRD, Running(FINGERPRINTS[0], 0.0345), 0.085, 0.0851),
    ]
    assert is_linearizable(history, resolution=RESOLUTION)
    assert is_linearizable(history, resolution=RESOLUTION, separate_clock_read=True)
    history[-1] = observed_acquire(THIRD, Running(FINGERPRINTS[0], 0.055), 0.085, 0.0851)
    assert not is_linearizable(history, resolution=RESOLUTION), "neither before its call nor after its answer"
    assert not is_linearizable(history, resolution=RESOLUTION, separate_clock_read=True)


def test_separate_clock_read_allows_a_write_to_become_visible_after_its_clock_reading() -> None:
    """A renewal reads the clock at 51 ms and is committed at 89 ms; at 80 ms another caller finds the old lease."""
    history = [
        observed_acquire(OURS, Acquired(Claim(KEY, OURS, 1, 1)), 0.0, 0.001),
        ObservedCall(Renew(KEY, OURS, LEASE), True, 0.05, 0.09),
        observed_acquire(OTHER, Running(FINGERPRINTS[0], 0.0195), 0.08, 0.081),
        observed_acquire(THIRD, Running(FINGERPRINTS[0], 0.0555), 0.095, 0.096),
    ]
    assert is_linearizable(history, resolution=RESOLUTION, separate_clock_read=True)
    assert not is_linearizable(history, resolution=RESOLUTION)
    history[-1] = observed_acquire(THIRD, Running(FINGERPRINTS[0], 0.02), 0.095, 0.096)
    assert not is_linearizable(history, resolution=RESOLUTION, separate_clock_read=True), (
        "nobody read the clock before 50 ms"
    )
