"""Refusals by a real server: the error says at once what to do, and nothing is claimed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest
import redis
import redis.asyncio
from patience import PATIENCE
from ports import free_port
from redis.crc import key_slot
from redis_servers import Cluster, Server

from idempotency import Acquired, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.stores.redis import RedisStore, SyncRedisStore

pytestmark = pytest.mark.anyio

KEY = StorageKey("refused")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(own_redis: Server) -> AsyncIterator[RedisStore]:
    """A store that is connected and has loaded its scripts."""
    store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
    assert isinstance(await acquire(store, StorageKey("warm-up")), Acquired)
    yield store
    await store.aclose()


def acquire_arguments() -> dict[str, object]:
    owner = Owner(secrets.token_bytes(16))
    return {"fingerprint": Fingerprint(b"f" * 32), "owner": owner, "lease": 30.0, "retention": 60.0}


async def acquire(store: RedisStore, key: StorageKey = KEY) -> object:
    return await store.acquire(key, **acquire_arguments())


def no_memory(client: redis.Redis) -> None:
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")


def no_replicas(client: redis.Redis) -> None:
    client.config_set("min-replicas-to-write", "1")


def demoted(client: redis.Redis) -> None:
    client.config_set("replica-serve-stale-data", "yes")
    client.replicaof("127.0.0.1", 1)


def without_primary(client: redis.Redis) -> None:
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", 1)


def no_rights(client: redis.Redis) -> None:
    client.execute_command("ACL SETUSER default -evalsha -eval")


@pytest.mark.parametrize(
    ("refuse", "advice"),
    [
        (no_memory, r"raise maxmemory.*\(OOM\)"),
        (no_replicas, r"min-replicas-to-write.*\(NOREPLICAS\)"),
        (demoted, r"point the client at the primary.*\(READONLY\)"),
        (without_primary, r"wait for the failover \(MASTERDOWN\)"),
        (no_rights, r"allow EVALSHA.*\(NOPERM\)"),
    ],
)
async def test_the_error_for_a_refusal_says_what_to_do_and_nothing_is_claimed(
    store: RedisStore, own_redis: Server, refuse: Callable[[redis.Redis], None], advice: str
) -> None:
    sync_store = SyncRedisStore(redis.Redis(port=own_redis.port), owns_client=True, deadline=PATIENCE)
    with own_redis.client() as client:
        refuse(client)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=advice):
            await acquire(store)
        assert time.monotonic() - started < PATIENCE / 2, "long before the deadline"
        with pytest.raises(StoreUnavailable, match=advice):
            sync_store.acquire(KEY, **acquire_arguments())
        client.replicaof("NO", "ONE")
        client.execute_command("ACL SETUSER default +@all")
        client.config_set("maxmemory", "0")
        client.config_set("min-replicas-to-write", "0")
        assert client.exists(f"idempotency:{KEY}") == 0
    assert isinstance(await acquire(store), Acquired), "the store recovers by itself"
    sync_store.close()


async def test_a_call_to_a_busy_server_raises_store_unavailable_and_its_script_runs_on(
    store: RedisStore, own_redis: Server
) -> None:
    ended: list[str] = []

    def run() -> None:
        with redis.Redis(port=own_redis.port) as other:
            try:
                other.eval("while true do end", 0)
            except redis.ResponseError as error:
                ended.append(str(error))

    with own_redis.client() as client:
        client.config_set("busy-reply-threshold", "50")
        thread = threading.Thread(target=run)
        thread.start()
        with contextlib.suppress(redis.ResponseError):  # BUSY
            while True:
                client.ping()
        with pytest.raises(StoreUnavailable, match=r"long script.*\(BUSY\)"):
            await acquire(store)
        assert ended == []
        client.script_kill()
        await asyncio.to_thread(thread.join)
    assert "killed" in ended[0], "the script ran until it was killed"
    assert isinstance(await acquire(store), Acquired)


async def test_the_rights_that_the_error_lists_suffice(own_redis: Server) -> None:
    with own_redis.client() as client:
        rights = "+evalsha +eval +get +set +del +pttl +pexpireat +pexpiretime +time ~idempotency:*"
        client.execute_command(f"ACL SETUSER keeper on >s3cret resetkeys nocommands {rights}")
    keeper = redis.asyncio.Redis(port=own_redis.port, username="keeper", password="s3cret")
    store = RedisStore(keeper, owns_client=True, deadline=PATIENCE)
    reply = await acquire(store)
    assert isinstance(reply, Acquired)
    assert await store.renew(reply.claim, lease=30.0)
    assert await store.complete(reply.claim, b"{}", retention=60.0)
    assert await store.complete(reply.claim, b"{}", retention=60.0), "a repeat"
    assert await store.get(KEY) is not None
    assert await store.release(reply.claim) is False
    await store.aclose()


async def test_a_redirection_loop_between_two_nodes_raises_store_unavailable(
    redis_cluster: Cluster,
) -> None:
    """Each of the two nodes says that the other has the slot, as may happen while a slot moves."""
    client = redis.asyncio.RedisCluster.from_url(redis_cluster.url)
    store = RedisStore(client, deadline=PATIENCE, owns_client=True)
    key = StorageKey(f"moving-{secrets.token_hex(6)}")
    reply = await acquire(store, key)
    assert isinstance(reply, Acquired)
    slot = key_slot(f"idempotency:{key}".encode())
    number = slot * 3 // 16384
    source, target = redis_cluster.nodes[number], redis_cluster.nodes[(number + 1) % 3]
    with source.client() as at_source, target.client() as at_target:
        ids = [each.execute_command("CLUSTER MYID").decode() for each in (at_source, at_target)]
        try:
            # The source redirects calls for missing keys to the target, which does not know of the move and sends back.
            at_source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
            at_source.delete(f"idempotency:{key}")
            started = time.monotonic()
            with pytest.raises(StoreUnavailable, match="keeps redirecting"):
                await acquire(store, key)
            assert time.monotonic() - started < PATIENCE / 2, "long before the deadline"
        finally:
            at_source.execute_command("CLUSTER SETSLOT", slot, "STABLE")
    assert isinstance(await acquire(store, key), Acquired), (
        "nothing was claimed, and the store recovers by itself"
    )
    await store.forget(key)
    await store.aclose()


async def test_a_cluster_that_cannot_be_reached_is_unavailable_to_readers_of_its_records_too() -> None:
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=free_port())
    store = RedisStore(client, deadline=PATIENCE, owns_client=True)
    for call in (store.get(KEY), store.scan()):
        with pytest.raises(StoreUnavailable, match="no answer from Redis"):
            await call
    await store.aclose()
