"""The fence rises from one run of a key to the next, also if the server's clock was set back in between."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from patience import PATIENCE
from redis_proxy import Proxy
from redis_servers import Cluster, Server

from idempotency import Acquired, Fingerprint, Owner, StorageKey
from idempotency.stores.redis import RedisStore, SyncRedisStore

pytestmark = pytest.mark.anyio

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
AN_HOUR = 3_600_000_000  # in the fence's unit, microseconds


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"fence-{secrets.token_hex(8)}")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis.asyncio.Redis.from_url(redis_url), deadline=PATIENCE, owns_client=True)
    yield store
    await store.aclose()


def new_owner() -> Owner:
    return Owner(secrets.token_bytes(16))


async def next_fence(store: Any, key: StorageKey) -> int:
    reply = await store.acquire(key, owner=new_owner(), **ACQUIRE)
    assert isinstance(reply, Acquired)
    return reply.claim.fence


def move_fence_one_hour_ahead(client: Any, name: str) -> int:
    """Rewrite the record as a server would have written it whose clock was an hour ahead then."""
    value = client.get(name)
    fence = int(re.search(rb'"fence":(\d+)', value)[1]) + AN_HOUR
    client.set(name, re.sub(rb'"fence":\d+', b'"fence":%d' % fence, value), keepttl=True)
    return fence


@pytest.mark.parametrize("end", ["release", "forget running", "forget completed"])
async def test_the_fence_rises_after_a_release_or_forget_although_the_clock_was_set_back(
    store, client, key, end: str
) -> None:
    reply = await store.acquire(key, owner=new_owner(), **ACQUIRE)
    before = move_fence_one_hour_ahead(client, f"idempotency:{key}")
    if end == "release":
        assert await store.release(reply.claim)
    else:
        if end == "forget completed":
            assert await store.complete(reply.claim, b"{}", retention=60.0)
        assert await store.forget(key)
    assert not client.exists(f"idempotency:{key}"), "the record itself is gone"
    assert await next_fence(store, key) > before
    assert await store.forget(key)
    assert await next_fence(store, key) > before + 1


def test_the_fence_of_a_sync_store_rises_although_the_clock_was_set_back(
    client: redis.Redis, key: StorageKey
) -> None:
    store = SyncRedisStore(client, deadline=PATIENCE)
    reply = store.acquire(key, owner=new_owner(), **ACQUIRE)
    before = move_fence_one_hour_ahead(client, f"idempotency:{key}")
    assert store.release(reply.claim)
    again = store.acquire(key, owner=new_owner(), **ACQUIRE)
    assert again.claim.fence > before
    assert store.forget(key)
    assert store.acquire(key, owner=new_owner(), **ACQUIRE).claim.fence > before + 1
    store.close()


async def test_the_fence_of_a_released_key_is_kept_until_its_retention_ends(store, client, key) -> None:
    reply = await store.acquire(key, owner=new_owner(), **ACQUIRE)
    await store.release(reply.claim)
    kept = f"idempotency:fence:{{idempotency:{key}}}"
    assert int(client.get(kept)) == reply.claim.fence
    assert 0 < client.ttl(kept) <= ACQUIRE["retention"]


async def test_a_kept_fence_is_not_listed_by_a_scan(store, client, key) -> None:
    """An operator sees records only."""
    reply = await store.acquire(key, owner=new_owner(), **ACQUIRE)
    await store.release(reply.claim)
    seen, cursor = [], None
    while True:
        page = await store.scan(limit=500, cursor=cursor)
        seen += [record.key for record in page.records]
        if (cursor := page.cursor) is None:
            break
    assert not [name for name in seen if key in name]


@pytest.mark.parametrize("prefix", ["idempotency:", "{shop}:", "app:{shop}:", "", "a}b{c}"])
async def test_a_cluster_keeps_the_fence_in_the_slot_of_its_record(
    redis_cluster: Cluster, prefix: str, key: StorageKey
) -> None:
    prefix = f"{prefix}{secrets.token_hex(3)}:"
    store = RedisStore(
        redis.asyncio.RedisCluster.from_url(redis_cluster.url),
        prefix=prefix,
        deadline=PATIENCE,
        owns_client=True,
    )
    with redis_cluster.client() as client:
        for number in range(6):
            name = StorageKey(f"{key}-{number}")
            reply = await store.acquire(name, owner=new_owner(), **ACQUIRE)
            before = move_fence_one_hour_ahead(client, f"{prefix}{name}")
            assert await store.release(reply.claim)
            assert await next_fence(store, name) > before
    await store.aclose()


@pytest.mark.parametrize("prefix", ["a{b:", "{}", "a}b"])
async def test_a_prefix_whose_braces_form_no_hash_tag_works_on_a_cluster(
    redis_cluster: Cluster, prefix: str, key: StorageKey
) -> None:
    store = RedisStore(
        redis.asyncio.RedisCluster.from_url(redis_cluster.url),
        prefix=prefix,
        deadline=PATIENCE,
        owns_client=True,
    )
    for number in range(6):
        name = StorageKey(f"{key}-{number}")
        first = await next_fence(store, name)
        assert await store.forget(name)
        assert await next_fence(store, name) > first
    await store.aclose()


async def test_a_release_succeeds_on_a_server_out_of_memory(own_redis: Server, key: StorageKey) -> None:
    store = RedisStore(redis.asyncio.Redis(port=own_redis.port), owns_client=True, deadline=PATIENCE)
    reply = await store.acquire(key, owner=new_owner(), **ACQUIRE)
    await store.release((await store.acquire(StorageKey("w"), owner=new_owner(), **ACQUIRE)).claim)
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        assert await store.release(reply.claim) is True
        assert not client.exists(f"idempotency:{key}")
    await store.aclose()


async def test_keeping_the_fence_costs_no_round_trip(redis_proxy: Proxy, key: StorageKey) -> None:
    store = RedisStore(redis.asyncio.Redis(port=redis_proxy.port), owns_client=True, deadline=PATIENCE)
    for _ in range(2):  # the first turn loads the scripts
        redis_proxy.commands.clear()
        reply = await store.acquire(key, owner=new_owner(), **ACQUIRE)
        await store.release(reply.claim)
    assert redis_proxy.commands == ["EVALSHA", "EVALSHA"]
    await store.aclose()
