"""
Primaries that fail under load: every call ends in time, the store recovers by itself, no confirmed claim is lost.

The long form, with more faults and figures, is `benchmarks/failover.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path

import pytest
from patience import PATIENCE, retry_unavailable, until_sync
from redis_failover import DEADLINE, cluster_url, fail_over, sentinel_url
from redis_servers import start_cluster, start_sentinels

from idempotency import StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.stores.url import open_store, open_sync_store

pytestmark = [pytest.mark.real_time("Redis servers fail over by their own timers"), pytest.mark.anyio]

SLACK = 5.0  # seconds: callers are woken one after the other, on a busy machine


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_sentinels_promote_a_replica_and_no_confirmed_claim_is_lost(redis_binary: Path) -> None:
    with start_sentinels(redis_binary, replicas=2, sentinels=3) as sentinels:
        url = sentinel_url(sentinels, wait_replicas=1)
        seen = await fail_over(url, sentinels.primary, "kill", before=0.5, down=None, after=0.5)
    assert seen.granted_after > 0
    assert seen.refused > 0, "some calls failed"
    assert seen.longest < DEADLINE + seen.late + SLACK
    assert seen.lost == 0


async def test_a_cluster_serves_every_slot_again_after_a_primary_froze(redis_binary: Path) -> None:
    """A frozen primary closes no connection. It stays frozen until all slots are served again."""
    with start_cluster(redis_binary, replicas=1) as cluster:
        url = cluster_url(cluster, wait_replicas=0)
        seen = await fail_over(url, cluster.nodes[0], "freeze", before=0.5, down=None, after=0.0)
    assert seen.refused > 0, "some calls failed"
    assert seen.longest < DEADLINE + seen.late + SLACK


async def test_callers_of_a_cluster_that_was_silent_from_the_first_call_on_are_served(
    redis_binary: Path,
) -> None:
    """The nodes and slots are read for the first time while calls are given up and other calls follow."""
    with start_cluster(redis_binary, replicas=1) as cluster:
        store = open_store(cluster_url(cluster, wait_replicas=0))
        keys = [StorageKey(f"first-{number}") for number in range(12)]  # of every node
        cluster.nodes[0].freeze()
        found = await asyncio.gather(*(retry_unavailable(partial(store.get, key)) for key in keys))
        await store.aclose()
    assert found == [None] * 12


def test_a_sync_store_is_served_again_after_a_primary_froze(redis_binary: Path) -> None:
    with start_cluster(redis_binary, replicas=1) as cluster:
        store = open_sync_store(cluster_url(cluster, wait_replicas=0))
        keys = [StorageKey(f"slot-{number}") for number in range(12)]  # of every node
        assert [store.get(key) for key in keys] == [None] * 12
        cluster.nodes[0].freeze()
        unanswered = list(keys)

        def are_answered() -> bool:
            with contextlib.suppress(StoreUnavailable):
                while unanswered:
                    assert store.get(unanswered[-1]) is None
                    unanswered.pop()
            return not unanswered

        until_sync(are_answered, "another node answers for the frozen one", patience=2 * PATIENCE)
        store.close()
