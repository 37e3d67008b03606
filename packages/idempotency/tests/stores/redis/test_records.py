"""Records in Redis: readable JSON, outcomes unchanged byte for byte, their lifetimes, and claims granted once."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from redis_servers import Cluster, Server

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, Running, StorageKey
from idempotency.store import Inspectable, SyncInspectable
from idempotency.stores.redis import RedisStore, SyncRedisStore

pytestmark = pytest.mark.anyio

FINGERPRINT = Fingerprint(b"\x00\xff" * 16)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"record-{secrets.token_hex(8)}")


@pytest.fixture
async def store(redis_server: Server) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis.asyncio.Redis(port=redis_server.port), owns_client=True, deadline=PATIENCE)
    yield store
    await store.aclose()


@pytest.fixture
def sync_store(redis_server: Server) -> Iterator[SyncRedisStore]:
    with redis_server.client() as client:
        store = SyncRedisStore(client, deadline=PATIENCE)
        yield store
        store.close()


@pytest.fixture
def server(redis_server: Server) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


def new_owner() -> Owner:
    return Owner(secrets.token_bytes(16))


async def claim(store: RedisStore, key: StorageKey, *, lease: float = 30.0, retention: float = 60.0) -> Claim:
    reply = await store.acquire(
        key, fingerprint=FINGERPRINT, owner=new_owner(), lease=lease, retention=retention
    )
    assert isinstance(reply, Acquired)
    return reply.claim


class TestLayout:
    async def test_a_running_record_is_json_with_its_owner_fence_and_lease(self, store, server, key) -> None:
        granted = await claim(store, key)
        record = json.loads(server.get(f"idempotency:{key}"))
        seconds, micros = server.time()
        now = seconds * 1000 + micros // 1000
        assert record["state"] == "running"
        assert record["owner"] == granted.owner.hex()
        assert record["fence"] == granted.fence
        assert now < record["lease_until_ms"] <= now + 30_000

    async def test_a_completed_record_shows_the_outcome_and_its_ttl_is_the_retention(
        self, store, server, key
    ) -> None:
        granted = await claim(store, key)
        outcome = b'{"format":1,"status_code":201,"body":"caf\xc3\xa9"}'
        await store.complete(granted, outcome, retention=3600.0)
        record = json.loads(server.get(f"idempotency:{key}"))
        assert (record["state"], record["status_code"], record["body"]) == ("completed", 201, "café")
        assert 3590 < server.ttl(f"idempotency:{key}") <= 3600

    async def test_the_ttl_of_a_running_record_is_its_lease_plus_its_retention(
        self, store, server, key
    ) -> None:
        granted = await claim(store, key, lease=10.0, retention=100.0)
        assert 100 < server.ttl(f"idempotency:{key}") <= 110
        await store.renew(granted, lease=50.0)
        assert 140 < server.ttl(f"idempotency:{key}") <= 150

    @pytest.mark.parametrize("outcome", [b"{}", b'{ "n": 1}'])
    async def test_a_completed_record_is_json_whatever_members_its_outcome_has(
        self, outcome: bytes, store, server, key
    ) -> None:
        await store.complete(await claim(store, key), outcome, retention=60.0)
        assert json.loads(server.get(f"idempotency:{key}")).items() >= json.loads(outcome).items()

    async def test_the_fence_of_a_takeover_rises_although_the_clock_was_set_back(
        self, store, server, key
    ) -> None:
        granted = await claim(store, key)
        name = f"idempotency:{key}"
        record = json.loads(server.get(name))
        ahead = granted.fence + 3_600_000_000
        earlier = (
            server.get(name)
            .replace(b"%d" % granted.fence, b"%d" % ahead)
            .replace(b'"lease_until_ms":%d' % record["lease_until_ms"], b'"lease_until_ms":1')
        )
        server.set(name, earlier, keepttl=True)
        successor = await claim(store, key)
        assert (successor.attempt, successor.fence) == (2, ahead + 1)

    async def test_the_age_of_an_outcome_is_zero_where_the_clock_was_set_back(
        self, store, server, key
    ) -> None:
        await store.complete(await claim(store, key), b'{"n":1}', retention=60.0)
        name = f"idempotency:{key}"
        record = json.loads(server.get(name))
        later = server.get(name).replace(
            b"%d" % record["completed_at_ms"], b"%d" % (record["completed_at_ms"] + 5_000)
        )
        server.set(name, later, keepttl=True)
        reply = await store.acquire(key, fingerprint=FINGERPRINT, owner=new_owner(), lease=1, retention=1)
        assert isinstance(reply, Completed)
        assert (reply.age, (await store.get(key)).age) == (0.0, 0.0)

    async def test_deleting_the_key_by_hand_frees_it(self, store, server, key) -> None:
        first = await claim(store, key)
        server.delete(f"idempotency:{key}")
        second = await claim(store, key)
        assert second.attempt == 1
        assert second.fence > first.fence
        assert await store.complete(first, b"{}", retention=60.0) is False

    async def test_fences_of_claims_in_quick_succession_rise(self, store, key) -> None:
        fences = []
        for _ in range(200):
            granted = await claim(store, key)
            await store.release(granted)
            fences.append(granted.fence)
        assert fences == sorted(set(fences))

    def test_a_client_with_decode_responses_reads_the_same_records(self, redis_server: Server, key) -> None:
        with redis.Redis(port=redis_server.port, decode_responses=True, protocol=3) as client:
            store = SyncRedisStore(client, deadline=PATIENCE)
            reply = store.acquire(key, fingerprint=FINGERPRINT, owner=new_owner(), lease=9.0, retention=9.0)
            assert isinstance(reply, Acquired)
            store.complete(reply.claim, b'{"a":"\xc3\xa9"}', retention=9.0)
            record = store.get(key)
            assert record is not None
            assert (record.outcome, record.fingerprint) == (b'{"a":"\xc3\xa9"}', FINGERPRINT)
            store.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# Names of members that the head of a record has too, or that contain text of a head.
NAMES = (
    st.sampled_from(["state", "v", "owner", "fence", "completed_at_ms", 'x","state":"running']) | st.text()
)


@given(
    members=st.dictionaries(NAMES, JSON, max_size=4),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_outcome_comes_back_byte_for_byte(sync_store, members, indent, ascii_only) -> None:
    outcome = json.dumps(members, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
    key = StorageKey(f"bytes-{secrets.token_hex(8)}")
    owner = new_owner()
    reply = sync_store.acquire(key, fingerprint=FINGERPRINT, owner=owner, lease=9.0, retention=9.0)
    assert sync_store.complete(reply.claim, outcome, retention=9.0)
    assert not sync_store.release(reply.claim)
    again = sync_store.acquire(key, fingerprint=FINGERPRINT, owner=new_owner(), lease=9.0, retention=9.0)
    record = sync_store.get(key)
    assert again.outcome == record.outcome == outcome
    assert record.owner == owner


@pytest.mark.parametrize("outcome", [b"", b"[]", b"null", b'{"a":1', b' {"a":1}', b'"{}"'])
async def test_an_outcome_that_is_no_json_object_is_refused_before_it_is_sent(
    store, key, outcome: bytes
) -> None:
    granted = await claim(store, key)
    with pytest.raises(ValueError, match="one JSON object"):
        await store.complete(granted, outcome, retention=60.0)
    assert await store.renew(granted, lease=30.0), "the claim is untouched"


async def test_eight_tasks_racing_for_a_hundred_keys_run_each_once(store) -> None:
    """Every task asks for every key until it is completed, and exactly one task runs it."""
    runs: dict[StorageKey, int] = {}
    keys = [StorageKey(f"race-{secrets.token_hex(6)}") for _ in range(100)]

    async def task() -> None:
        for key in keys:
            while True:
                reply = await store.acquire(
                    key, fingerprint=FINGERPRINT, owner=new_owner(), lease=30.0, retention=60.0
                )
                if isinstance(reply, Completed):
                    break
                if isinstance(reply, Running):
                    await asyncio.sleep(0)
                    continue
                runs[key] = runs.get(key, 0) + 1
                assert await store.complete(reply.claim, b'{"n":1}', retention=60.0)

    await asyncio.gather(*(task() for _ in range(8)))
    assert runs == dict.fromkeys(keys, 1)


class TestLeases:
    async def test_a_lease_of_18_ms_holds_until_it_ends(self, store) -> None:
        for _ in range(50):
            key = StorageKey(f"lease-{secrets.token_hex(6)}")
            started = time.monotonic()
            await claim(store, key, lease=0.018)
            reply = await store.acquire(
                key, fingerprint=FINGERPRINT, owner=new_owner(), lease=30.0, retention=60.0
            )
            if time.monotonic() - started < 0.018:  # else the machine was too slow to tell
                assert isinstance(reply, Running)
                return
        pytest.fail("two calls never fitted into 18 ms")

    async def test_a_repeated_acquire_with_a_shorter_lease_and_retention_shortens_neither(
        self, store, key
    ) -> None:
        granted = await claim(store, key, lease=30.0)
        reply = await store.acquire(
            key, fingerprint=FINGERPRINT, owner=granted.owner, lease=1.0, retention=1.0
        )
        record = await store.get(key)
        assert reply == Acquired(granted)
        assert record is not None
        assert record.lease_left > 25
        assert record.expires_in > 85


class TestOperators:
    async def test_a_scan_lists_every_record_and_nothing_else(self, redis_server: Server, server) -> None:
        prefix = f"scan*[{secrets.token_hex(4)}]:"
        store = RedisStore(
            redis.asyncio.Redis(port=redis_server.port), prefix=prefix, owns_client=True, deadline=PATIENCE
        )
        assert isinstance(store, Inspectable)
        keys = {StorageKey(f"k{number}") for number in range(57)}
        for key in keys:
            await claim(store, key)
        server.set(prefix.replace("*", "-") + "k1", "of somebody else")
        server.set(prefix + "foreign", "no record", ex=60)
        server.lpush(prefix + "list", "no string")
        seen, cursor, first = [], None, True
        while first or cursor is not None:
            page = await store.scan(limit=10, cursor=cursor)
            seen += page.records
            cursor, first = page.cursor, False
        assert {record.key for record in seen} == keys
        await store.aclose()

    async def test_a_scan_of_a_cluster_lists_the_records_of_every_primary(
        self, redis_cluster: Cluster
    ) -> None:
        prefix = f"scan-{secrets.token_hex(4)}:"
        client = redis.asyncio.RedisCluster.from_url(redis_cluster.url)
        store = RedisStore(client, prefix=prefix, owns_client=True, deadline=PATIENCE)
        keys = {StorageKey(f"k{number}") for number in range(30)}
        await asyncio.gather(*(claim(store, key) for key in keys))
        seen, cursor, first = [], None, True
        while first or cursor is not None:
            page = await store.scan(limit=10, cursor=cursor)
            seen += page.records
            cursor, first = page.cursor, False
        assert {record.key for record in seen} == keys
        await store.aclose()

    def test_a_sync_scan_lists_a_record(self, sync_store: SyncRedisStore, key) -> None:
        assert isinstance(sync_store, SyncInspectable)
        sync_store.acquire(key, fingerprint=FINGERPRINT, owner=new_owner(), lease=9.0, retention=9.0)
        seen, cursor, first = [], None, True
        while first or cursor is not None:
            page = sync_store.scan(limit=500, cursor=cursor)
            seen += [record.key for record in page.records]
            cursor, first = page.cursor, False
        assert key in seen

    @pytest.mark.parametrize("completed", [False, True])
    async def test_forgetting_a_running_or_completed_record_frees_its_key(
        self, store, key, completed: bool
    ) -> None:
        granted = await claim(store, key)
        if completed:
            await store.complete(granted, b"{}", retention=60.0)
        assert await store.forget(key) is True
        assert await store.forget(key) is False
        assert (await claim(store, key)).fence > granted.fence

    @pytest.mark.parametrize("cursor", ["", "1", "x:0", "7:0", "0:x"])
    async def test_an_invalid_cursor_is_refused(self, store, cursor: str) -> None:
        with pytest.raises(ValueError, match="cursor"):
            await store.scan(cursor=cursor)
