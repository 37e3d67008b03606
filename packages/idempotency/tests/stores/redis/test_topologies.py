"""Clusters that move a slot, primaries that fail over, and replicas that must confirm."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import redis
import redis.asyncio
from patience import PATIENCE, retry_unavailable
from redis.crc import key_slot
from redis_servers import Cluster, Sentinels, Server

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.stores.redis import RedisStore, SyncRedisStore

pytestmark = [pytest.mark.real_time("replicas and Sentinels act by their own timers"), pytest.mark.anyio]

DEADLINE = 6.0  # s; up to a third of it is spent waiting for replicas
ACQUIRE = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def cluster_store(redis_cluster: Cluster) -> AsyncIterator[RedisStore]:
    client = redis.asyncio.RedisCluster.from_url(redis_cluster.url)
    store = RedisStore(client, deadline=PATIENCE, owns_client=True)
    yield store
    await store.aclose()


def new_owner() -> Owner:
    return Owner(secrets.token_bytes(16))


async def claim(store: RedisStore, key: StorageKey) -> Claim:
    reply = await store.acquire(key, owner=new_owner(), **ACQUIRE)
    assert isinstance(reply, Acquired)
    return reply.claim


class SlotMove:
    """Moves a slot from its node to another."""

    def __init__(self, cluster: Cluster, key: StorageKey) -> None:
        self.slot = key_slot(f"idempotency:{key}".encode())
        number = self.slot * 3 // 16384
        self.source, self.target = cluster.nodes[number], cluster.nodes[(number + 1) % 3]
        self.others = cluster.nodes
        self.name = f"idempotency:{key}"

    def begin(self) -> None:
        self._set(self.target, "IMPORTING", self._id(self.source))
        self._set(self.source, "MIGRATING", self._id(self.target))

    def migrate_key(self) -> None:
        with self.source.client() as client:
            client.execute_command("MIGRATE", "127.0.0.1", self.target.port, self.name, 0, 1000)

    def delete_keys(self) -> None:
        """Delete the slot's keys, kept fences too: a node with keys of a slot does not give it away."""
        with self.target.client() as client:
            for name in client.execute_command("CLUSTER GETKEYSINSLOT", self.slot, 100):
                client.delete(name)

    def end(self, at: Server) -> None:
        for node in (at, *self.others):
            self._set(node, "NODE", self._id(at))

    def _set(self, node: Server, *state: object) -> None:
        with node.client() as client:
            client.execute_command("CLUSTER SETSLOT", self.slot, *state)

    def _id(self, node: Server) -> str:
        with node.client() as client:
            return str(client.execute_command("CLUSTER MYID").decode())


class TestCluster:
    async def test_keys_of_every_node_are_claimed_and_completed_concurrently(
        self, cluster_store: RedisStore
    ) -> None:
        keys = [StorageKey(f"spread-{secrets.token_hex(6)}") for _ in range(60)]
        claims = await asyncio.gather(*(claim(cluster_store, key) for key in keys))
        done = await asyncio.gather(*(cluster_store.complete(each, b"{}", retention=60.0) for each in claims))
        assert all(done)

    async def test_calls_follow_a_slot_that_moves_to_another_node(
        self, redis_cluster: Cluster, cluster_store: RedisStore
    ) -> None:
        key = StorageKey(f"moving-{secrets.token_hex(6)}")
        granted = await claim(cluster_store, key)
        move = SlotMove(redis_cluster, key)
        try:
            move.begin()
            move.migrate_key()  # now the source answers ASK for this key
            assert await cluster_store.renew(granted, lease=30.0)
            move.end(move.target)  # and now MOVED
            assert await cluster_store.complete(granted, b'{"n":1}', retention=60.0)
            reply = await cluster_store.acquire(key, owner=new_owner(), **ACQUIRE)
            assert isinstance(reply, Completed)
        finally:
            move.delete_keys()
            move.end(move.source)

    def test_sync_calls_follow_a_slot_that_moves_to_another_node(self, redis_cluster: Cluster) -> None:
        with redis_cluster.client() as client:
            store = SyncRedisStore(client, deadline=PATIENCE)
            key = StorageKey(f"moving-{secrets.token_hex(6)}")
            reply = store.acquire(key, owner=new_owner(), **ACQUIRE)
            assert isinstance(reply, Acquired)
            move = SlotMove(redis_cluster, key)
            try:
                move.begin()
                move.migrate_key()
                assert store.renew(reply.claim, lease=30.0)
                move.end(move.target)
                assert store.complete(reply.claim, b'{"n":1}', retention=60.0)
            finally:
                move.delete_keys()
                move.end(move.source)
                store.close()


class TestSentinel:
    async def test_a_claim_that_a_replica_confirmed_survives_a_failover(
        self, redis_sentinels: Sentinels
    ) -> None:
        sentinel = redis.asyncio.Sentinel([("127.0.0.1", redis_sentinels.sentinel.port)])
        client = sentinel.master_for(redis_sentinels.name)
        store = RedisStore(client, deadline=PATIENCE, wait_replicas=1, owns_client=True)
        granted = await claim(store, StorageKey("survives"))
        redis_sentinels.primary.stop()
        without_replicas = RedisStore(client, deadline=2.0)
        reply = await retry_unavailable(lambda: without_replicas.renew(granted, lease=30.0))
        assert reply is True, "the claim that a replica confirmed outlived its primary"
        await without_replicas.aclose()
        await store.aclose()


class TestReplicas:
    async def test_a_write_returns_after_a_replica_has_it(self, redis_sentinels: Sentinels) -> None:
        store = self.open(redis_sentinels)
        granted = await claim(store, StorageKey("copied"))
        with redis_sentinels.replica.client() as replica:
            assert replica.exists("idempotency:copied")
        assert await store.complete(granted, b"{}", retention=60.0)
        assert await store.complete(granted, b"{}", retention=60.0), "a repeat is confirmed anew"
        await store.aclose()

    async def test_a_claim_confirmed_by_too_few_replicas_is_released(
        self, redis_sentinels: Sentinels
    ) -> None:
        store = self.open(redis_sentinels)
        first = await claim(store, StorageKey("known"))
        redis_sentinels.replica.stop()
        with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
            await claim(store, StorageKey("unconfirmed"))
        assert await store.get(StorageKey("unconfirmed")) is None
        with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
            await store.complete(first, b'{"n":1}', retention=60.0)
        await store.aclose()

    async def test_a_replay_needs_no_replica(self, redis_sentinels: Sentinels) -> None:
        store = self.open(redis_sentinels)
        granted = await claim(store, StorageKey("done"))
        await store.complete(granted, b'{"n":1}', retention=60.0)
        redis_sentinels.replica.stop()
        reply = await store.acquire(granted.key, owner=new_owner(), **ACQUIRE)
        assert isinstance(reply, Completed)
        await store.aclose()

    def test_a_sync_claim_confirmed_by_too_few_replicas_is_released(self, redis_sentinels: Sentinels) -> None:
        with redis_sentinels.primary.client() as client:
            store = SyncRedisStore(client, deadline=DEADLINE, wait_replicas=1)
            assert isinstance(store.acquire(StorageKey("a"), owner=new_owner(), **ACQUIRE), Acquired)
            redis_sentinels.replica.stop()
            with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
                store.acquire(StorageKey("b"), owner=new_owner(), **ACQUIRE)
            assert store.get(StorageKey("b")) is None
            store.close()

    def open(self, sentinels: Sentinels) -> RedisStore:
        client = redis.asyncio.Redis(port=sentinels.primary.port)
        return RedisStore(client, deadline=DEADLINE, wait_replicas=1, owns_client=True)
