"""A script that a server does not have is loaded once, however many callers wait for it."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio
from patience import PATIENCE, until
from redis_servers import Cluster, Server

from idempotency import Acquired, Fingerprint, Owner, StorageKey
from idempotency.stores.redis import RedisStore, SyncRedisStore

pytestmark = pytest.mark.anyio

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def new_owner() -> Owner:
    return Owner(secrets.token_bytes(16))


def keys(many: int) -> list[StorageKey]:
    batch = secrets.token_hex(6)
    return [StorageKey(f"cold-{batch}-{number}") for number in range(many)]


def counts(client: redis.Redis) -> tuple[int, int]:
    """Counts the EVALSHA calls that failed, for a missing script, and the EVAL calls that carried its text."""
    stats = client.info("commandstats")
    failed = stats.get("cmdstat_evalsha", {"failed_calls": 0})["failed_calls"]
    evals = stats.get("cmdstat_eval", {"calls": 0})["calls"]
    return failed, evals


def reset(client: redis.Redis) -> None:
    client.config_resetstat()


async def claim_all(store: RedisStore, many: int) -> None:
    replies = await asyncio.gather(*(store.acquire(key, owner=new_owner(), **ACQUIRE) for key in keys(many)))
    assert all(isinstance(reply, Acquired) for reply in replies)


async def test_two_thousand_callers_of_a_new_server_share_one_script_load(own_redis: Server) -> None:
    store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
    await claim_all(store, 2_000)
    with own_redis.client() as client:
        failed, loads = counts(client)
        assert failed <= 1
        assert loads == 1
    await store.aclose()


async def test_callers_share_one_script_load_after_a_script_flush(own_redis: Server) -> None:
    store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
    await claim_all(store, 1)
    with own_redis.client() as client:
        client.script_flush()
        reset(client)
        await claim_all(store, 2_000)
        failed, loads = counts(client)
    assert loads == 1
    assert failed <= 256, "no more than were in flight together"
    await store.aclose()


async def test_callers_share_one_script_load_after_a_server_restart(own_redis: Server) -> None:
    store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
    await claim_all(store, 1)
    own_redis.stop()
    own_redis.start()
    with own_redis.client() as client:

        def is_up() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        await until(is_up)
        await claim_all(store, 2_000)
        failed, loads = counts(client)
        assert failed <= 1
        assert loads == 1
    await store.aclose()


async def test_each_node_of_a_cluster_loads_the_script_once(redis_cluster: Cluster) -> None:
    store = RedisStore(
        redis.asyncio.RedisCluster.from_url(redis_cluster.url), deadline=PATIENCE, owns_client=True
    )
    for node in redis_cluster.nodes:
        with node.client() as client:
            client.script_flush()
            reset(client)
    await claim_all(store, 600)
    for node in redis_cluster.nodes:
        with node.client() as client:
            failed, loads = counts(client)
            assert failed <= 1
            assert loads == 1
    await store.aclose()


async def test_a_cancelled_caller_does_not_cancel_the_script_load_of_others(own_redis: Server) -> None:
    store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
    await store.forget(StorageKey("opens the connection"))
    calls = [asyncio.create_task(store.acquire(key, owner=new_owner(), **ACQUIRE)) for key in keys(50)]
    await asyncio.sleep(0)
    for cancelled in calls[:10]:
        cancelled.cancel()
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(reply, Acquired) for reply in replies[10:])
    await store.aclose()


async def test_a_refused_script_load_fails_every_waiting_caller(own_redis: Server) -> None:
    """The user may run known scripts, but not load any."""
    with own_redis.client() as admin:
        admin.execute_command("ACL SETUSER frugal on >secret ~* +@all -eval")
    store = RedisStore(
        redis.asyncio.Redis(port=own_redis.port, username="frugal", password="secret"),
        deadline=PATIENCE,
        owns_client=True,
    )
    calls = [store.acquire(key, owner=new_owner(), **ACQUIRE) for key in keys(20)]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert all("NOPERM" in str(reply) for reply in replies)
    await store.aclose()


class TestThreads:
    @pytest.fixture
    def store(self, own_redis: Server) -> Iterator[SyncRedisStore]:
        with redis.Redis(port=own_redis.port) as client:
            store = SyncRedisStore(client, deadline=PATIENCE)
            yield store
            store.close()

    def claim_all(self, store: SyncRedisStore, many: int) -> None:
        barrier = threading.Barrier(many)

        def work(key: StorageKey) -> Any:
            barrier.wait(20)
            return store.acquire(key, owner=new_owner(), **ACQUIRE)

        with ThreadPoolExecutor(many) as threads:
            assert all(isinstance(reply, Acquired) for reply in threads.map(work, keys(many)))

    def test_threads_that_call_a_new_server_share_one_script_load(
        self, store: SyncRedisStore, own_redis: Server
    ) -> None:
        self.claim_all(store, 64)
        with own_redis.client() as client:
            failed, loads = counts(client)
            assert failed <= 1
            assert loads == 1

    def test_callers_share_one_script_load_after_a_script_flush(
        self, store: SyncRedisStore, own_redis: Server
    ) -> None:
        self.claim_all(store, 1)
        with own_redis.client() as client:
            client.script_flush()
            reset(client)
            self.claim_all(store, 64)
            failed, loads = counts(client)
        assert loads == 1
        assert failed <= 64

    def test_each_node_of_a_cluster_loads_the_script_once(self, redis_cluster: Cluster) -> None:
        for node in redis_cluster.nodes:
            with node.client() as client:
                client.script_flush()
                reset(client)
        with redis_cluster.client() as cluster:
            store = SyncRedisStore(cluster, deadline=PATIENCE)
            self.claim_all(store, 60)
            store.close()
        for node in redis_cluster.nodes:
            with node.client() as client:
                failed, loads = counts(client)
                assert failed <= 1
                assert loads == 1
