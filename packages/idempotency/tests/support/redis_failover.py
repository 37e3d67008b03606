"""
Claims under load while a primary fails: the longest call, the length of the outage, and the number of lost claims.

A claim counts as lost if it was granted, and another owner is granted the same key later although the lease of the
first still runs: the operation then runs twice.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from patience import retry_unavailable, until
from redis_servers import Cluster, Sentinels, Server

from idempotency import Acquired, Fingerprint, Owner, StorageKey, Store
from idempotency.errors import StoreUnavailable
from idempotency.stores.url import open_store

__all__ = ["DEADLINE", "LAG", "Failover", "Fault", "cluster_url", "fail_over", "sentinel_url"]

Fault: TypeAlias = Literal["kill", "freeze", "lag"]
"""Killed; frozen and thawed; or killed a moment after its replicas lost their connection to it."""

DEADLINE = 1.0  # seconds for a call
LAG = 0.2  # seconds by which replicas are behind
_CALLERS = 16
_SERVED = 2.0  # seconds without a refusal, after which the outage is over; longer than a call
_PAUSE = 0.002  # between the calls of one caller
_FINGERPRINT = Fingerprint(b"f" * 32)


@dataclass
class Failover:
    """
    The counts of one run of the experiment.

    Attributes:
        granted: The keys that were granted.
        granted_after: How many of them were granted after the last refusal.
        refused: Calls that ended in `StoreUnavailable`.
        longest: Seconds of the longest call.
        outage: Seconds from the fault to the end of the last refusal.
        late: Seconds by which this machine was late with a timer, at the worst: calls are late by as much.
        lost: Granted keys that another owner was granted as well.
    """

    granted: list[StorageKey] = field(default_factory=list)
    granted_after: int = 0
    refused: int = 0
    longest: float = 0.0
    outage: float = 0.0
    late: float = 0.0
    lost: int = 0


def sentinel_url(sentinels: Sentinels, wait_replicas: int) -> str:
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels.sentinels)
    return f"redis+sentinel://{hosts}/{sentinels.name}?deadline={DEADLINE}&wait_replicas={wait_replicas}"


def cluster_url(cluster: Cluster, wait_replicas: int) -> str:
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in (*cluster.nodes, *cluster.replicas))
    return f"redis+cluster://{hosts}?deadline={DEADLINE}&wait_replicas={wait_replicas}"


async def fail_over(
    url: str, victim: Server, fault: Fault, *, before: float, down: float | None, after: float
) -> Failover:
    """
    Claim new keys over *url* for *before* seconds, *down* seconds with *victim* failed, and *after* it has come back.

    If *down* is None, *victim* stays failed until no call has been refused for two seconds.

    Raises:
        AssertionError: Calls are still refused 60 s after the fault.
        TimeoutError: The keys could not be checked within 30 s after that.
    """
    seen = Failover()
    stores = [open_store(url) for _ in range(4)]
    stopping = asyncio.Event()
    faulty_since = 0.0
    try:
        callers = [
            asyncio.create_task(_claim_on(store, seen, stopping.is_set, lambda: faulty_since))
            for store, _ in zip(itertools.cycle(stores), range(_CALLERS), strict=False)
        ]
        callers.append(asyncio.create_task(_watch_timers(seen, stopping.is_set)))
        await asyncio.sleep(before)  # of load
        if fault == "lag":
            _lose_replicas(victim)
            await asyncio.sleep(LAG)  # so many seconds of writes are what the replica lacks
        victim.freeze() if fault == "freeze" else victim.stop()
        faulty_since = time.monotonic()
        if down is None:
            await _until_served(seen, faulty_since)
        else:
            await asyncio.sleep(down)  # of load
        victim.thaw() if fault == "freeze" else victim.start()
        await asyncio.sleep(after)  # of load
        stopping.set()
        await asyncio.gather(*callers)
        async with asyncio.timeout(30):
            seen.lost = sum([await _is_free(stores[0], key) for key in seen.granted])
    finally:
        for store in stores:
            await store.aclose()
    return seen


async def _until_served(seen: Failover, faulty_since: float) -> None:
    await until(
        lambda: seen.refused and time.monotonic() - faulty_since - seen.outage >= _SERVED, patience=60.0
    )


async def _watch_timers(seen: Failover, is_over: Callable[[], bool]) -> None:
    while not is_over():
        due = time.monotonic() + 0.01
        await asyncio.sleep(0.01)  # by how much it is late is what is measured
        seen.late = max(seen.late, time.monotonic() - due)


def _lose_replicas(primary: Server) -> None:
    """Disconnect the replicas for good: they do not know the new password. Other connections stay."""
    with primary.client() as client:
        client.config_set("requirepass", "unknown to replicas")
        client.execute_command("CLIENT KILL TYPE replica")


async def _claim_on(
    store: Store, seen: Failover, is_over: Callable[[], bool], faulty_since: Callable[[], float]
) -> None:
    while not is_over():
        key = StorageKey(f"failover-{secrets.token_hex(10)}")
        started = time.monotonic()
        try:
            if await _claim(store, key):
                seen.granted.append(key)
                seen.granted_after += 1
        except StoreUnavailable:
            seen.refused += 1
            seen.granted_after = 0
            if faulty_since():
                seen.outage = time.monotonic() - faulty_since()
        seen.longest = max(seen.longest, time.monotonic() - started)
        await asyncio.sleep(_PAUSE)  # the load is so many claims a second


async def _is_free(store: Store, key: StorageKey) -> bool:
    return await retry_unavailable(lambda: _claim(store, key))


async def _claim(store: Store, key: StorageKey) -> bool:
    owner = Owner(secrets.token_bytes(16))
    reply = await store.acquire(key, fingerprint=_FINGERPRINT, owner=owner, lease=300.0, retention=300.0)
    return isinstance(reply, Acquired)
