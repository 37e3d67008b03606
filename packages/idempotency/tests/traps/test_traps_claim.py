"""Traps 1 to 7: races, leases, and owners that come back after their lease."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from asgi_driver import call
from effects import Charges, PatchedStore, guard
from patience import until, until_lapsed
from stores import open_store

from idempotency import Policy, State, StorageKey
from idempotency.store import Store

pytestmark = pytest.mark.anyio

LEASE = 0.3
KEPT_LEASE = 1.5  # s: for a run that must keep its key, also if the machine stalls for a second
WORKER = Path(__file__).parents[1] / "support" / "worker.py"


async def _skip_renewal(store: Store, *args: Any, **kwargs: Any) -> bool:
    """Replaces `renew`: no renewal reaches the store."""
    return True


@pytest.mark.trap(1)
async def test_duplicates_around_the_moment_of_completion_run_once_for_each_key(
    any_store: Store, key: str
) -> None:
    async def work(number: int) -> None:
        await asyncio.sleep(0.002)  # as long as a few calls of a real store

    charges = Charges(work)
    app = guard(charges, any_store)

    async def duplicate(name: str, delay: float) -> int | None:
        await asyncio.sleep(delay)  # to before, at and after the completion
        return (await call(app, key=name, body=name.encode())).status

    keys = [f"{key}-{number}" for number in range(100)]
    for start in range(0, len(keys), 10):
        statuses = await asyncio.gather(
            *[duplicate(name, 0.0007 * step) for name in keys[start : start + 10] for step in range(8)]
        )
        assert set(statuses) <= {201, 409}
    assert sorted(charges.bodies) == sorted(name.encode() for name in keys)


@pytest.mark.trap(2)
async def test_four_processes_with_one_key_run_the_handler_once(
    shared_kind: str, locate: Any, key: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    async with open_store(shared_kind, locate(shared_kind)):
        workers = [
            await asyncio.create_subprocess_exec(
                sys.executable, WORKER, shared_kind, locate(shared_kind), ledger, key, "50", "0.01"
            )
            for _ in range(4)
        ]
        assert [await worker.wait() for worker in workers] == [0, 0, 0, 0]
    assert ledger.read_bytes() == b"1", "208 requests in 4 processes have one effect"


@pytest.mark.trap(3)
async def test_the_key_of_a_killed_process_is_free_after_its_lease_and_not_only_after_the_retention(
    shared_kind: str, locate: Any, key: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    async with open_store(shared_kind, locate(shared_kind)) as store:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, WORKER, shared_kind, locate(shared_kind), ledger, key, "1", "60", str(LEASE)
        )
        await until(ledger.read_bytes)
        os.kill(worker.pid, signal.SIGKILL)
        await worker.wait()
        charges = Charges()
        app = guard(charges, store, lease=LEASE, wait=3 * LEASE + 5)
        began = asyncio.get_running_loop().time()
        assert (await call(app, key=key, body=b"same")).status == 201
        assert asyncio.get_running_loop().time() - began < LEASE + 2
        assert charges.runs == 1
        record = await store.get(StorageKey(key))
    assert record is not None
    assert (record.attempt, record.state) == (2, State.COMPLETED)
    assert record.expires_in > 86_000, "the result lives much longer than the lease"


@pytest.mark.trap(3)
def test_the_lease_is_short_and_the_retention_long_by_default() -> None:
    assert Policy().lease <= 60
    assert Policy().retention == 24 * 3600


@pytest.mark.trap(4)
async def test_a_running_record_has_a_lease_and_expires_after_lease_and_retention(
    any_store: Store, key: str
) -> None:
    seen = []

    async def work(number: int) -> None:
        seen.append(await any_store.get(StorageKey(key)))

    await call(guard(Charges(work), any_store, lease=20, retention=100), key=key)
    (record,) = seen
    assert record is not None
    assert record.state is State.RUNNING
    assert 0 < record.lease_left <= 20
    assert record.lease_left < record.expires_in <= 120


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(5)
async def test_a_handler_that_runs_longer_than_its_lease_keeps_its_key(any_store: Store, key: str) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges, watched = Charges(work), PatchedStore(any_store)
    app, elsewhere = (guard(charges, store, lease=KEPT_LEASE) for store in (watched, any_store))
    first = asyncio.create_task(call(app, key=key))
    await until(lambda: watched.calls.get("renew", 0) >= 4)  # one each third of the lease
    assert (await call(elsewhere, key=key)).status == 409
    go_on.set()
    assert (await first).status == 201
    assert charges.runs == 1
    again = await call(elsewhere, key=key)
    assert (again.replayed, again.body) == (True, b'{"charge": 1}')


async def _stalled_owner(
    store: Store, key: str, **policy: Any
) -> tuple[Charges, asyncio.Task[Any], asyncio.Event]:
    """A run that is no longer renewed, and whose lease is over."""
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        if number == 1:
            await go_on.wait()

    charges = Charges(work, **policy)
    stalled = guard(charges, PatchedStore(store, renew=_skip_renewal), lease=LEASE)
    task = asyncio.create_task(call(stalled, key=key))
    await until(lambda: charges.runs != 0)
    await until_lapsed(store, StorageKey(key))
    return charges, task, go_on


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(6)
async def test_a_late_completion_does_not_overwrite_its_successors_outcome(
    any_store: Store, key: str
) -> None:
    charges, late, go_on = await _stalled_owner(any_store, key)
    app = guard(charges, any_store, lease=LEASE)
    assert (await call(app, key=key)).body == b'{"charge": 2}'
    go_on.set()
    answer = await late
    assert (answer.replayed, answer.body) == (True, b'{"charge": 2}'), "the successor's record is the answer"
    assert (await call(app, key=key)).body == b'{"charge": 2}'
    assert charges.runs == 2


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(6)
async def test_a_late_completion_gets_409_while_its_successor_runs(any_store: Store, key: str) -> None:
    charges, late, go_on = await _stalled_owner(any_store, key)
    hold = asyncio.Event()

    async def work(number: int) -> None:
        await (go_on if number == 1 else hold).wait()

    charges.work = work
    successor = asyncio.create_task(call(guard(charges, any_store, lease=10), key=key))
    await until(lambda: charges.runs >= 2)
    go_on.set()
    answer = await late
    assert answer.status == 409
    assert answer.header("retry-after") is not None
    hold.set()
    assert (await successor).body == b'{"charge": 2}'


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(6)
async def test_a_late_completion_without_a_successor_is_recorded(any_store: Store, key: str) -> None:
    charges, late, go_on = await _stalled_owner(any_store, key)
    go_on.set()
    assert (await late).body == b'{"charge": 1}'
    assert (await call(guard(charges, any_store), key=key)).replayed


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(7)
async def test_a_late_release_does_not_remove_its_successors_record(any_store: Store, key: str) -> None:
    charges, late, go_on = await _stalled_owner(any_store, key, status=503)
    charges.status = 201
    app = guard(charges, any_store, lease=LEASE)
    assert (await call(app, key=key)).body == b'{"charge": 2}'
    charges.status = 503
    go_on.set()
    assert (await late).status == 503
    again = await call(app, key=key)
    assert (again.replayed, again.body) == (True, b'{"charge": 2}')


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(7)
async def test_a_late_release_does_not_free_the_key_while_its_successor_runs(
    any_store: Store, key: str
) -> None:
    charges, late, go_on = await _stalled_owner(any_store, key, status=503)
    hold = asyncio.Event()

    async def work(number: int) -> None:
        await (go_on if number == 1 else hold).wait()

    charges.work = work
    app = guard(charges, any_store, lease=10)
    successor = asyncio.create_task(call(app, key=key))
    await until(lambda: charges.runs >= 2)
    go_on.set()
    await late
    async with asyncio.timeout(30):
        assert (await call(app, key=key)).status == 409
    hold.set()
    await successor
    assert charges.runs == 2
