"""Traps 24 to 27, 49 to 52, 57, 58 and 60: stores that are down, slow, shared, full, old or tampered with."""

from __future__ import annotations

import ast
import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import time_machine
from asgi_driver import call
from effects import Charges, PatchedStore, guard
from patience import PATIENCE, until, until_forgotten
from redis_servers import Server
from stores import background_tasks_done

import idempotency
from idempotency import Acquired, Fingerprint, IdempotencyMiddleware, Owner, Policy, StorageKey, one_tenant
from idempotency.events import Event, StoreFailed
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.stores.sqlite import SQLiteStore
from idempotency.testing import Fault, FaultyStore

pytestmark = pytest.mark.anyio

LEASE = 0.3


@pytest.mark.trap(24)
async def test_a_claim_whose_reply_was_lost_is_released(any_store: Store, key: str) -> None:
    store = FaultyStore(any_store)
    store.inject("acquire", [Fault.FAIL_AFTER])
    charges = Charges()
    app = guard(charges, store, lease=3600)
    answer = await call(app, key=key)
    assert (answer.status, charges.runs) == (503, 0), "nothing runs without a confirmed claim"
    await until_forgotten(any_store, StorageKey(key))
    assert (await call(app, key=key)).status == 201, "long before the lease of an hour is over"


@pytest.mark.trap(24)
async def test_a_claim_granted_while_redis_was_frozen_is_released(own_redis: Server, key: str) -> None:
    from redis.asyncio import Redis

    from idempotency.stores.redis import RedisStore

    charges = Charges()
    async with Redis.from_url(own_redis.url) as client:
        store = RedisStore(client, deadline=1.0)
        # An unreleased claim would hold the key for longer than the test waits.
        app = guard(charges, store, lease=3600.0)
        while (await call(app, key=f"{key}-warm")).status != 201:
            pass
        runs_before = charges.runs
        own_redis.freeze()
        assert (await call(app, key=key)).status == 503
        own_redis.thaw()

        async def is_free() -> bool:
            return (await call(app, key=key)).status == 201

        await until(is_free)
        await background_tasks_done()
        await store.aclose()
    assert charges.runs == runs_before + 1


@pytest.mark.trap(25)
async def test_a_call_to_a_frozen_redis_ends_at_the_deadline_with_503(own_redis: Server, key: str) -> None:
    from redis.asyncio import Redis

    from idempotency.stores.redis import RedisStore

    async with Redis.from_url(own_redis.url) as client:
        store = RedisStore(client, deadline=0.2)
        app = guard(Charges(), store)
        while (await call(app, key=f"{key}-warm")).status != 201:
            pass
        own_redis.freeze()
        for _ in range(2):
            began = time.monotonic()
            answer = await call(app, key=key)
            assert answer.status == 503
            assert time.monotonic() - began < PATIENCE
        own_redis.thaw()
        await background_tasks_done(cancel=True)
        await store.aclose()


@pytest.mark.trap(25)
@pytest.mark.parametrize("kind", ["redis", "postgres"])
async def test_a_call_to_a_server_that_never_answers_ends_at_the_deadline_with_503(
    kind: str, key: str
) -> None:
    held = []
    silent_server = await asyncio.start_server(lambda reader, writer: held.append(writer), "127.0.0.1", 0)
    port = silent_server.sockets[0].getsockname()[1]
    charges = Charges()
    if kind == "redis":
        from redis.asyncio import Redis

        from idempotency.stores.redis import RedisStore

        async with Redis(port=port) as client:
            store: Any = RedisStore(client, deadline=0.3)
            answer, took = await _timed(call(guard(charges, store), key=key))
            await background_tasks_done(cancel=True)
            await store.aclose()
    else:
        from psycopg_pool import AsyncConnectionPool

        from idempotency.stores.postgres import PostgresStore

        pool = AsyncConnectionPool(
            f"postgresql://u@127.0.0.1:{port}/d", min_size=0, max_size=2, open=False, reconnect_timeout=0.1
        )
        await pool.open()
        answer, took = await _timed(call(guard(charges, PostgresStore(pool, deadline=0.3)), key=key))
        await background_tasks_done(cancel=True)
        await pool.close(timeout=0)
    assert (answer.status, charges.runs) == (503, 0)
    assert took < PATIENCE
    for writer in held:
        writer.close()
    silent_server.close()


async def _timed(answer: Any) -> tuple[Any, float]:
    began = time.monotonic()
    return await answer, time.monotonic() - began


def _down(any_store: Store) -> FaultyStore:
    store = FaultyStore(any_store)
    store.inject("acquire", itertools.repeat(Fault.FAIL_BEFORE))
    return store


@pytest.mark.trap(26)
async def test_a_keyed_request_gets_503_while_the_store_is_down(any_store: Store, key: str) -> None:
    charges = Charges()
    app = guard(charges, _down(any_store))
    answer = await call(app, key=key)
    assert (answer.status, charges.runs) == (503, 0)
    assert answer.header("content-type") == b"application/problem+json"
    assert int(answer.header("retry-after") or 0) >= 1
    assert b"store-unavailable" in answer.body
    assert (await call(app)).status == 201, "requests without a key do not need the store"


@pytest.mark.trap(26)
async def test_on_store_error_bypass_runs_a_keyed_request_unprotected(any_store: Store, key: str) -> None:
    charges, events = Charges(), list[Event]()
    app = IdempotencyMiddleware(
        charges,
        store=_down(any_store),
        tenant=one_tenant(),
        policy=Policy(on_store_error="bypass"),
        hooks=[events.append],
    )
    for number in (1, 2):
        answer = await call(app, key=key, body=b"the body arrives")
        assert (answer.status, answer.body) == (201, b'{"charge": %d}' % number)
    assert charges.bodies == [b"the body arrives"] * 2
    assert [event.action for event in events if isinstance(event, StoreFailed)] == ["bypassed"] * 2


@pytest.mark.real_time("the calls during a time are counted")
@pytest.mark.trap(26)
async def test_a_store_whose_wait_fails_is_polled_instead(key: str) -> None:
    async def work(number: int) -> None:
        await asyncio.sleep(0.3)  # the calls during this time are counted

    class Waiting(PatchedStore):
        async def wait(self, key: StorageKey, *, timeout: float) -> None:
            raise idempotency.StoreUnavailable("no hints today")

    shared = MemoryStore()
    charges = Charges(work)
    owner = asyncio.create_task(call(guard(charges, shared), key=key))
    await until(lambda: charges.runs == 1)
    store = Waiting(shared)
    waiter = asyncio.create_task(call(guard(Charges(), store, wait=PATIENCE), key=key))
    await owner
    assert (await waiter).replayed
    assert store.calls["acquire"] < 20


@pytest.mark.trap(27)
async def test_scripts_that_the_server_lost_are_loaded_again(own_redis: Server, key: str) -> None:
    from redis.asyncio import Redis

    from idempotency.stores.redis import RedisStore

    async with Redis.from_url(own_redis.url) as client:
        store = RedisStore(client, deadline=PATIENCE)

        async def flush(number: int) -> None:
            await client.script_flush()

        charges = Charges(flush)  # between the claim and the record
        app = guard(charges, store)
        assert (await call(app, key=key)).status == 201
        await client.script_flush()
        assert (await call(app, key=key)).replayed
        await store.aclose()
    assert charges.runs == 1


@pytest.mark.trap(49)
async def test_a_key_is_free_after_its_retention_and_replays_do_not_extend_it(
    any_store: Store, key: str
) -> None:
    charges = Charges()
    app = guard(charges, any_store, retention=0.4)
    await call(app, key=key)
    answers = []

    async def ran_again() -> bool:
        answers.append(await call(app, key=key))
        return not answers[-1].replayed

    await until(ran_again)
    assert answers[-1].body == b'{"charge": 2}'


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(49)
async def test_an_expired_claim_can_be_neither_renewed_completed_nor_released(
    any_store: Store, key: str
) -> None:
    async def acquire() -> Any:
        reply = await any_store.acquire(
            StorageKey(key),
            fingerprint=Fingerprint(b"f" * 32),
            owner=Owner(bytes(16)),
            lease=0.1,
            retention=0.1,
        )
        assert isinstance(reply, Acquired)
        return reply.claim

    claim = await acquire()
    await until_forgotten(any_store, StorageKey(key))
    assert not await any_store.renew(claim, lease=10)
    assert not await any_store.complete(claim, b"{}", retention=10)
    assert not await any_store.release(claim)
    assert await any_store.get(StorageKey(key)) is None
    later = await acquire()
    assert (later.attempt, later.fence > claim.fence) == (1, True)


@pytest.mark.trap(50, store="memory")
def test_the_time_of_a_miss_does_not_grow_with_the_number_of_records() -> None:
    """Compares the best of several alternating batches, which other load on the machine affects least."""

    def batch(store: SyncMemoryStore, turn: int) -> float:
        began = time.perf_counter()
        for number in range(200):
            store.acquire(
                StorageKey(f"{turn}-{number}"),
                fingerprint=Fingerprint(b"f"),
                owner=Owner(b"o"),
                lease=60,
                retention=60,
            )
        return time.perf_counter() - began

    full = SyncMemoryStore(max_records=100_000)
    for number in range(20_000):
        reply = full.acquire(
            StorageKey(f"old-{number}"),
            fingerprint=Fingerprint(b"f"),
            owner=Owner(b"o"),
            lease=0.001 if number % 2 else 60,
            retention=0.001,
        )
        assert isinstance(reply, Acquired)
        if number % 3 == 0:
            full.complete(reply.claim, b"{}", retention=0.001 if number % 2 else 60)
    none = SyncMemoryStore(max_records=100_000)
    times = [(batch(full, turn), batch(none, turn)) for turn in range(15)]
    assert min(among_many for among_many, _ in times) < 2 * min(among_none for _, among_none in times)


@pytest.mark.trap(50, store="memory")
async def test_a_full_memory_store_evicts_answers_and_never_a_running_claim(key: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        if number == 1:
            await go_on.wait()

    charges = Charges(work)
    app = guard(charges, MemoryStore(max_records=3))
    running = asyncio.create_task(call(app, key=key))
    while charges.runs == 0:
        await asyncio.sleep(0)
    for number in range(20):
        assert (await call(app, key=f"{key}-{number}")).status == 201
    assert (await call(app, key=key)).status == 409
    go_on.set()
    assert (await running).status == 201
    assert (await call(app, key=key)).replayed


@pytest.mark.trap(51)
@pytest.mark.parametrize("step", [-3600, 3600], ids=["back", "ahead"])
async def test_a_step_of_the_wall_clock_changes_no_lease(step: int, any_store: Store, key: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    app = guard(charges, any_store, lease=60)
    first = asyncio.create_task(call(app, key=key))
    await until(lambda: charges.runs != 0)
    with time_machine.travel(time.time() + step):
        async with asyncio.timeout(30):
            assert (await call(app, key=key)).status == 409
        go_on.set()
        assert (await first).status == 201
        assert (await call(app, key=key)).replayed
    assert (await call(app, key=key)).replayed, "the retention of a day is longer than the step"
    assert charges.runs == 1


@pytest.mark.trap(52, store="sqlite")
async def test_eight_concurrent_writers_of_one_file_all_succeed(tmp_path: Path, key: str) -> None:
    def writer(number: int) -> list[int | None]:
        async def write() -> list[int | None]:
            store = SQLiteStore(tmp_path / "records.db", busy_timeout=PATIENCE)
            app = guard(Charges(), store)
            answers = [await call(app, key=f"{key}-{number}-{turn}") for turn in range(12)]
            await store.aclose()
            return [answer.status for answer in answers]

        return asyncio.run(write())

    statuses = await asyncio.gather(*[asyncio.to_thread(writer, number) for number in range(8)])
    assert list(itertools.chain(*statuses)) == [201] * 96


@pytest.mark.trap(52, store="sqlite")
async def test_a_purge_of_a_file_deletes_no_more_than_its_limit(tmp_path: Path, key: str) -> None:
    store = SQLiteStore(tmp_path / "records.db", synchronous="NORMAL")
    app = guard(Charges(), store, lease=0.01, retention=0.01)
    claims = [
        await store.acquire(
            StorageKey(f"{key}-{number}"),
            fingerprint=Fingerprint(b"f"),
            owner=Owner(bytes(16)),
            lease=0.01,
            retention=0.01,
        )
        for number in range(30)
    ]
    await until_forgotten(store, *(StorageKey(f"{key}-{number}") for number in range(30)))
    assert all(isinstance(claim, Acquired) for claim in claims)
    assert await store.purge(limit=7) == 7
    await call(app, key=key)  # a complete deletes a few more
    assert 0 < await store.purge(limit=1000) < 30 - 7 + 1
    await store.aclose()


def _with_outcome(any_store: Store, change: Any) -> PatchedStore:
    """A store that applies *change* to each outcome that it records."""

    async def complete(store: Store, claim: Any, outcome: bytes, **kwargs: Any) -> bool:
        return await store.complete(claim, change(outcome), **kwargs)

    return PatchedStore(any_store, complete=complete)


TAMPERED = {
    "no outcome at all": lambda outcome: b'{"a":1}',
    "no headers": lambda outcome: outcome.replace(b'"headers"', b'"footers"'),
    "a status that is text": lambda outcome: outcome.replace(b'"status_code":201', b'"status_code":"201"'),
    "an impossible status": lambda outcome: outcome.replace(b'"status_code":201', b'"status_code":99'),
    "a body that is no base64": lambda outcome: outcome.replace(b'"body":', b'"body_base64":'),
    "a function's value": lambda outcome: b'{"format":1,"outcome":"value","value":1}',
}


@pytest.mark.trap(57)
@pytest.mark.parametrize("how", TAMPERED)
async def test_a_tampered_record_is_refused_as_corrupt_and_kept(how: str, any_store: Store, key: str) -> None:
    charges = Charges()
    await call(guard(charges, _with_outcome(any_store, TAMPERED[how])), key=key)
    app = guard(charges, any_store)
    for _ in range(2):
        answer = await call(app, key=key)
        assert (answer.status, charges.runs) == (500, 1)
        assert b"corrupt-record" in answer.body
    assert await any_store.get(StorageKey(key)) is not None


@pytest.mark.trap(57)
def test_no_module_uses_eval_exec_or_pickle() -> None:
    package = Path(idempotency.__file__).parent
    files = list(package.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, file
            for name in names:
                assert name.split(".")[0] not in {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, file


@pytest.mark.trap(58)
async def test_a_record_of_a_newer_version_gets_503_with_retry_after_and_is_kept(
    any_store: Store, key: str
) -> None:
    def newer(outcome: bytes) -> bytes:
        return outcome.replace(b'"format":1', b'"format":2')

    charges = Charges()
    await call(guard(charges, _with_outcome(any_store, newer)), key=key)
    answer = await call(guard(charges, any_store), key=key)
    assert (answer.status, charges.runs) == (503, 1)
    assert int(answer.header("retry-after") or 0) >= 1
    record = await any_store.get(StorageKey(key))
    assert record is not None
    assert b'"format":2' in (record.outcome or b"")


@pytest.mark.trap(58)
async def test_unknown_members_of_a_record_are_ignored(any_store: Store, key: str) -> None:
    golden = (
        b'{"format":1,"outcome":"response","status_code":201,"headers":[["x-one","caf\xc3\xa9"]],'
        b'"body":"d\xc3\xa9j\xc3\xa0 vu","added":{"later":[1]}}'
    )
    charges = Charges()
    await call(guard(charges, _with_outcome(any_store, lambda outcome: golden)), key=key)
    again = await call(guard(charges, any_store), key=key)
    assert (again.status, again.body, again.header("x-one")) == (
        201,
        "d\u00e9j\u00e0 vu".encode(),
        b"caf\xe9",
    )
    assert charges.runs == 1


@pytest.mark.trap(60)
async def test_two_policies_on_one_store_are_both_applied(any_store: Store, key: str) -> None:
    short, long = guard(Charges(), any_store, retention=100), guard(Charges(), any_store, retention=1000)
    for app, name, retention in ((short, f"{key}-short", 100), (long, f"{key}-long", 1000)):
        await call(app, key=name)
        again = await call(app, key=name)
        assert retention - 10 <= int(again.header("idempotency-expires-in") or 0) <= retention
