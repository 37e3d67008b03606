"""The Redis store when the network or the server fails: no call outlives its deadline, no claim is granted twice."""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio
from patience import PATIENCE, retry_unavailable, retry_unavailable_sync
from redis_proxy import Action, Proxy
from redis_servers import Server

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, Running, StorageKey
from idempotency.errors import CorruptRecord, StoreUnavailable, UnknownRecordVersion
from idempotency.stores.redis import RedisStore, SyncRedisStore

pytestmark = pytest.mark.anyio

FINGERPRINT = Fingerprint(b"f" * 32)
OUTCOME = b'{"n":1}'


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"fault-{secrets.token_hex(8)}")


@pytest.fixture
async def store(redis_proxy: Proxy) -> AsyncIterator[RedisStore]:
    """A store behind the proxy, connected and with its scripts loaded."""
    async with opened(redis_proxy.port) as store:
        await warm_up(store)
        redis_proxy.commands.clear()
        yield store


@pytest.fixture
def sync_store(redis_proxy: Proxy) -> Iterator[SyncRedisStore]:
    with redis.Redis(port=redis_proxy.port) as client:
        store = SyncRedisStore(client, deadline=PATIENCE)
        store.get(StorageKey("warm-up"))
        reply = acquire_sync(store, StorageKey(f"warm-up-{secrets.token_hex(8)}"))
        assert isinstance(reply, Acquired)
        store.complete(reply.claim, OUTCOME, retention=60.0)
        redis_proxy.commands.clear()
        yield store
        store.close()


class opened:
    """A store on a port of the loopback, closed at the end."""

    def __init__(self, port: int, **settings: object) -> None:
        self.client = redis.asyncio.Redis(port=port)
        self.store = RedisStore(self.client, **({"deadline": PATIENCE, "owns_client": True} | settings))

    async def __aenter__(self) -> RedisStore:
        return self.store

    async def __aexit__(self, *_: object) -> None:
        await self.store.aclose()


def new_owner() -> Owner:
    return Owner(secrets.token_bytes(16))


async def acquire(store: RedisStore, key: StorageKey, owner: Owner | None = None) -> object:
    return await store.acquire(
        key, fingerprint=FINGERPRINT, owner=owner or new_owner(), lease=30.0, retention=60.0
    )


def acquire_sync(store: SyncRedisStore, key: StorageKey, owner: Owner | None = None) -> object:
    return store.acquire(key, fingerprint=FINGERPRINT, owner=owner or new_owner(), lease=30.0, retention=60.0)


async def claim(store: RedisStore, key: StorageKey) -> Claim:
    reply = await acquire(store, key)
    assert isinstance(reply, Acquired)
    return reply.claim


async def warm_up(store: RedisStore) -> None:
    granted = await claim(store, StorageKey(f"warm-up-{secrets.token_hex(8)}"))
    await store.renew(granted, lease=30.0)
    await store.complete(granted, OUTCOME, retention=60.0)
    await store.release(granted)
    await store.get(granted.key)


class TestRoundTrips:
    async def test_a_first_run_takes_two_round_trips_and_a_replay_one(
        self, store: RedisStore, redis_proxy: Proxy, key
    ) -> None:
        await store.complete(await claim(store, key), OUTCOME, retention=60.0)
        assert redis_proxy.commands == ["EVALSHA", "EVALSHA"]
        assert isinstance(await acquire(store, key), Completed)
        assert redis_proxy.commands == ["EVALSHA"] * 3

    def test_a_sync_first_run_takes_two_round_trips_and_a_replay_one(
        self, sync_store: SyncRedisStore, redis_proxy: Proxy, key
    ) -> None:
        reply = acquire_sync(sync_store, key)
        assert isinstance(reply, Acquired)
        sync_store.complete(reply.claim, OUTCOME, retention=60.0)
        assert isinstance(acquire_sync(sync_store, key), Completed)
        assert redis_proxy.commands == ["EVALSHA"] * 3

    async def test_a_flushed_script_is_loaded_once(self, own_redis: Server, key) -> None:
        async with opened(own_redis.port) as store:
            await warm_up(store)
            with own_redis.client() as client:
                client.script_flush()
                client.config_resetstat()
                for number in range(3):
                    await claim(store, StorageKey(f"{key}-{number}"))
                calls = {name: stat["calls"] for name, stat in client.info("commandstats").items()}
        assert (calls["cmdstat_evalsha"], calls["cmdstat_eval"]) == (3, 1)

    async def test_sixty_four_concurrent_calls_share_at_most_two_connections(self, own_redis: Server) -> None:
        async with opened(own_redis.port, deadline=PATIENCE) as store:
            keys = [StorageKey(f"many-{number}") for number in range(64)]
            replies = await asyncio.gather(*(acquire(store, each) for each in keys))
            with own_redis.client() as client:
                others = [
                    each for each in client.client_list() if each["cmd"] == "evalsha" or "eval" in each["cmd"]
                ]
        assert all(isinstance(reply, Acquired) for reply in replies)
        assert 1 <= len(others) <= 2


class TestLostReplies:
    @pytest.mark.parametrize("fault", ["lose request", "lose reply"])
    async def test_an_acquire_is_repeated_for_the_same_owner(
        self, store, redis_proxy: Proxy, key, fault: Action
    ) -> None:
        redis_proxy.fail_next("EVALSHA", fault)
        owner = new_owner()
        reply = await acquire(store, key, owner)
        assert isinstance(reply, Acquired)
        assert reply.claim.owner == owner
        assert reply.claim.attempt == 1

    @pytest.mark.parametrize("fault", ["lose request", "lose reply"])
    def test_a_sync_acquire_is_repeated_after_a_lost_request_or_reply(
        self, sync_store, redis_proxy: Proxy, key, fault: Action
    ) -> None:
        redis_proxy.fail_next("EVALSHA", fault)
        assert isinstance(acquire_sync(sync_store, key), Acquired)

    async def test_a_second_lost_reply_in_one_call_raises_store_unavailable(
        self, store, redis_proxy: Proxy, key
    ) -> None:
        redis_proxy.fail_next("EVALSHA", "lose reply")
        redis_proxy.fail_next("EVALSHA", "lose reply")
        with pytest.raises(StoreUnavailable, match="may be repeated"):
            await acquire(store, key)
        assert isinstance(await acquire(store, key), Running), "the claim was granted, and its reply lost"

    async def test_a_connection_cut_between_calls_is_replaced(self, store, redis_proxy: Proxy, key) -> None:
        redis_proxy.cut()
        assert isinstance(await acquire(store, key), Acquired)

    async def test_an_invalid_reply_replaces_the_connection_and_repeats_the_call(
        self, store, redis_proxy: Proxy, key
    ) -> None:
        before = store._to(store._only)._connection
        redis_proxy.fail_next("EVALSHA", b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert isinstance(await acquire(store, key), Acquired)
        assert store._to(store._only)._connection is not before

    async def test_every_call_that_shared_a_lost_reply_is_repeated(
        self, store, redis_proxy: Proxy, key
    ) -> None:
        redis_proxy.fail_next("EVALSHA", "lose reply")
        keys = [StorageKey(f"{key}-{number}") for number in range(32)]
        replies = await asyncio.gather(*(acquire(store, each) for each in keys))
        assert [type(reply) for reply in replies] == [Acquired] * 32

    async def test_every_call_that_shared_two_lost_replies_is_answered_or_raises_store_unavailable(
        self, store, redis_proxy: Proxy, key
    ) -> None:
        redis_proxy.fail_next("EVALSHA", "lose reply")
        redis_proxy.fail_next("EVALSHA", "lose reply")
        keys = [StorageKey(f"{key}-{number}") for number in range(32)]
        replies = await asyncio.gather(*(acquire(store, each) for each in keys), return_exceptions=True)
        assert {type(reply) for reply in replies} <= {Acquired, StoreUnavailable}
        assert any(isinstance(reply, StoreUnavailable) for reply in replies)
        assert isinstance(await acquire(store, StorageKey(f"{key}-after")), Acquired)


class TestDeadlines:
    async def test_calls_to_a_frozen_server_raise_store_unavailable_at_their_deadline(
        self, own_redis: Server, key
    ) -> None:
        async with opened(own_redis.port, deadline=0.3) as store:
            await retry_unavailable(lambda: warm_up(store))
            own_redis.freeze()
            started = time.monotonic()
            outcomes = await asyncio.gather(*(acquire(store, key) for _ in range(20)), return_exceptions=True)
            took = time.monotonic() - started
            own_redis.thaw()
            assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
            assert took < PATIENCE
            assert await retry_unavailable(lambda: store.get(StorageKey("thawed"))) is None

    def test_a_sync_call_to_a_frozen_server_raises_store_unavailable_at_its_deadline(
        self, own_redis: Server, key
    ) -> None:
        with own_redis.client() as client:
            store = SyncRedisStore(client, deadline=0.3)
            retry_unavailable_sync(lambda: store.get(key))
            own_redis.freeze()
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                acquire_sync(store, key)
            took = time.monotonic() - started
            own_redis.thaw()
            assert took < PATIENCE
            assert retry_unavailable_sync(lambda: store.get(StorageKey("thawed"))) is None
            store.close()

    async def test_an_unreachable_server_raises_store_unavailable_at_once(self, key) -> None:
        async with opened(1) as store:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await acquire(store, key)
            assert time.monotonic() - started < PATIENCE / 2, "long before the deadline"

    async def test_an_owner_whose_acquire_timed_out_gets_its_claim_after_the_thaw(
        self, own_redis: Server, key
    ) -> None:
        async with opened(own_redis.port, deadline=0.2) as store:
            await retry_unavailable(lambda: warm_up(store))
            owner = new_owner()
            own_redis.freeze()
            with pytest.raises(StoreUnavailable):
                await acquire(store, key, owner)
            own_redis.thaw()
            assert isinstance(await retry_unavailable(lambda: acquire(store, key, owner)), Acquired)


class TestRefusals:
    @pytest.mark.parametrize(
        ("reply", "advice"),
        [
            (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
            (b"-MASTERDOWN Link with MASTER is down\r\n", "failover"),
            (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "maxmemory"),
            (b"-BUSY Redis is busy running a script.\r\n", "long script"),
            (b"-NOREPLICAS Not enough good replicas to write.\r\n", "min-replicas-to-write"),
            (b"-NOAUTH Authentication required.\r\n", "password"),
            (b"-NOPERM this user has no permissions\r\n", "allow EVALSHA"),
            (b"-MISCONF Redis is configured to save RDB snapshots\r\n", "disk"),
            (b"-ERR DB index is out of range\r\n", "no database of this number"),
            (b"-ERR something else\r\n", "refused the command"),
        ],
    )
    async def test_the_error_for_an_error_reply_says_what_to_do(
        self, store, redis_proxy: Proxy, key, reply, advice
    ) -> None:
        redis_proxy.fail_next("EVALSHA", reply)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=advice):
            await acquire(store, key)
        assert time.monotonic() - started < PATIENCE / 2, "long before the deadline"
        assert isinstance(await acquire(store, key), Acquired), (
            "nothing was granted, and the store still works"
        )

    async def test_an_error_reply_in_a_batch_fails_only_its_own_call(
        self, store, redis_proxy: Proxy, key
    ) -> None:
        redis_proxy.fail_next("EVALSHA", b"-OOM command not allowed\r\n")
        keys = [StorageKey(f"{key}-{number}") for number in range(16)]
        replies = await asyncio.gather(*(acquire(store, each) for each in keys), return_exceptions=True)
        assert [type(reply) for reply in replies].count(StoreUnavailable) == 1
        assert [type(reply) for reply in replies].count(Acquired) == 15

    async def test_a_read_only_reply_is_retried_on_a_new_connection(
        self, store, redis_proxy: Proxy, key
    ) -> None:
        redis_proxy.fail_next("EVALSHA", b"-READONLY You can't write against a read only replica.\r\n")
        assert isinstance(await acquire(store, key), Acquired)

    async def test_the_error_for_a_wrong_password_does_not_show_it(self, own_redis: Server, key) -> None:
        with own_redis.client() as client:
            client.config_set("requirepass", "open sesame")
        client = redis.asyncio.Redis(port=own_redis.port, password="hunter2")
        store = RedisStore(client, owns_client=True, deadline=PATIENCE)
        with pytest.raises(StoreUnavailable, match="password") as refused:
            await acquire(store, key)
        assert "hunter2" not in repr(refused.value)
        await store.aclose()


class TestCancellation:
    async def test_a_cancelled_call_leaves_no_reply_for_the_next(self, own_redis: Server) -> None:
        """Calls are cancelled at many points, beside others that continue: no caller gets the reply to another."""
        async with opened(own_redis.port, deadline=PATIENCE) as store:
            await warm_up(store)

            async def own_key(number: int) -> bool:
                name = StorageKey(f"cancel-{number}")
                granted = await claim(store, name)
                seen = await store.get(name)
                return granted.key == name and seen is not None and seen.owner == granted.owner

            for delay in range(40):
                cancelled = [
                    asyncio.create_task(acquire(store, StorageKey(f"cancelled-{delay}-{n}")))
                    for n in range(4)
                ]
                alive = [asyncio.create_task(own_key(delay * 4 + n)) for n in range(4)]
                for _ in range(delay % 8):
                    await asyncio.sleep(0)
                for task in cancelled:
                    task.cancel()
                await asyncio.gather(*cancelled, return_exceptions=True)
                assert await asyncio.gather(*alive) == [True] * 4

    async def test_a_call_cancelled_while_queued_is_never_sent(self, own_redis: Server) -> None:
        async with opened(own_redis.port, deadline=PATIENCE) as store:
            await warm_up(store)
            tasks = [asyncio.create_task(acquire(store, StorageKey(f"queued-{n}"))) for n in range(10)]
            await asyncio.sleep(0)
            tasks[-1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await store.get(StorageKey("queued-9")) is None
            assert await store.get(StorageKey("queued-8")) is not None

    async def test_closing_the_store_during_calls_raises_store_unavailable_in_each(
        self, own_redis: Server
    ) -> None:
        async with opened(own_redis.port) as store:
            await warm_up(store)
            own_redis.freeze()
            calls = [asyncio.create_task(acquire(store, StorageKey(f"k-{number}"))) for number in range(4)]
            await anyio.wait_all_tasks_blocked()
            await store.aclose()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            own_redis.thaw()
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 4


class TestForksAndSettings:
    def test_a_second_event_loop_is_refused(self, redis_server: Server, key) -> None:
        store = RedisStore(redis.asyncio.Redis(port=redis_server.port), deadline=PATIENCE)

        async def use() -> None:
            await store.get(key)

        first = asyncio.new_event_loop()
        first.run_until_complete(use())
        with pytest.raises(RuntimeError, match="one store for each loop"):
            asyncio.run(use())
        first.run_until_complete(store.aclose())
        first.close()

    def test_a_forked_child_opens_its_own_connections(self, redis_server: Server, key) -> None:
        with redis_server.client() as client:
            store = SyncRedisStore(client, deadline=PATIENCE)
            reply = acquire_sync(store, key)
            assert isinstance(reply, Acquired)
            readable, writable = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    seen = [store.get(key) is not None for _ in range(50)]
                    os.write(writable, pickle.dumps(all(seen)))
                finally:
                    os._exit(0)
            mine = [store.get(StorageKey(f"{key}-absent")) for _ in range(50)]
            os.waitpid(child, 0)
            assert pickle.loads(os.read(readable, 100)) is True
            assert mine == [None] * 50
            os.close(readable), os.close(writable)
            store.close()

    def test_a_forked_child_may_use_the_store_in_its_own_event_loop(self, redis_server: Server, key) -> None:
        """The child neither closes the parent's sockets nor removes them from the parent's selector."""
        store = RedisStore(redis.asyncio.Redis(port=redis_server.port), deadline=PATIENCE)
        loop = asyncio.new_event_loop()
        granted = loop.run_until_complete(claim(store, key))
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                found = asyncio.new_event_loop().run_until_complete(store.get(key))
                os.write(writable, b"found" if found is not None else b"nothing")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(readable, 100) == b"found"
        assert loop.run_until_complete(store.complete(granted, OUTCOME, retention=60.0))
        os.close(readable), os.close(writable)
        loop.run_until_complete(store.aclose())
        loop.close()

    @pytest.mark.parametrize(
        "setting",
        [{"deadline": 0.0}, {"deadline": float("inf")}, {"wait_replicas": -1}, {"on_eviction": "hope"}],
    )
    def test_invalid_settings_are_refused(self, setting: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(setting))):
            RedisStore(redis.asyncio.Redis(), **setting)
        with pytest.raises(ValueError, match=next(iter(setting))):
            SyncRedisStore(redis.Redis(), **setting)

    def test_a_client_that_reads_from_replicas_is_refused(self) -> None:
        sentinel = redis.asyncio.Sentinel([("127.0.0.1", 1)])
        with pytest.raises(ValueError, match="master_for"):
            RedisStore(sentinel.slave_for("records"), deadline=PATIENCE)


class TestEviction:
    async def test_a_server_that_may_evict_records_logs_one_warning(
        self, own_redis: Server, key, caplog
    ) -> None:
        with own_redis.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        async with opened(own_redis.port) as store:
            assert isinstance(await acquire(store, key), Acquired)
            await store.get(key)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "noeviction" in caplog.text

    async def test_on_eviction_refuse_refuses_calls_while_the_server_may_evict_records(
        self, own_redis: Server, key
    ) -> None:
        with own_redis.client() as client:
            client.config_set("maxmemory-policy", "volatile-ttl")
            async with opened(own_redis.port, on_eviction="refuse") as store:
                with pytest.raises(StoreUnavailable, match="noeviction"):
                    await acquire(store, key)
                client.config_set("maxmemory-policy", "noeviction")
                assert isinstance(await acquire(store, key), Acquired)


class TestForeignValues:
    LEGACY = b'{"status_code": 200, "headers": {}, "body": "ok"}'

    async def put(self, server: Server, key: StorageKey, value: bytes) -> None:
        with server.client() as client:
            client.set(f"idempotency:{key}", value, ex=60)

    async def test_an_adopted_value_is_replayed_and_cannot_be_completed_or_released(
        self, redis_server: Server, key
    ) -> None:
        await self.put(redis_server, key, self.LEGACY)
        async with opened(redis_server.port, adopt=lambda value: b'{"old":true}') as store:
            reply = await acquire(store, key)
            assert isinstance(reply, Completed)
            assert (reply.fingerprint, reply.outcome) == (FINGERPRINT, b'{"old":true}')
            assert 50 < reply.expires_in <= 60
            record = await store.get(key)
            assert record is not None
            assert record.outcome == b'{"old":true}'
            other_claim = Claim(key, new_owner(), 1, 1)
            assert not await store.complete(other_claim, OUTCOME, retention=60.0)
            assert not await store.release(other_claim)

    async def test_a_value_that_is_not_adopted_is_corrupt_and_left_unchanged(
        self, redis_server: Server, key
    ) -> None:
        await self.put(redis_server, key, self.LEGACY)
        for adopt in (None, lambda value: None):
            async with opened(redis_server.port, adopt=adopt) as store:
                with pytest.raises(CorruptRecord):
                    await acquire(store, key)
                with pytest.raises(CorruptRecord):
                    await store.get(key)
        with redis_server.client() as client:
            assert client.get(f"idempotency:{key}") == self.LEGACY

    async def test_a_record_of_a_newer_version_raises_unknown_record_version_and_is_left_unchanged(
        self, redis_server: Server, key
    ) -> None:
        newer = b'{"v":2,"state":"completed","body":"ok"}'
        await self.put(redis_server, key, newer)
        async with opened(redis_server.port, adopt=lambda value: b"{}") as store:
            with pytest.raises(UnknownRecordVersion, match="version 2"):
                await acquire(store, key)
            with pytest.raises(UnknownRecordVersion, match="version 2"):
                await store.get(key)
            assert not await store.complete(Claim(key, new_owner(), 1, 1), OUTCOME, retention=60.0)
        with redis_server.client() as client:
            assert client.get(f"idempotency:{key}") == newer

    @pytest.mark.parametrize(
        "damage",
        [
            b'{"v":1,"state":"completed","fi',
            b'{"v":1,"state":"running"}',
            b"{}",
            b"",
            b'{"v":1,"state":"completed","fingerprint":"abc","owner":"ab","attempt":1,"fence":1,'
            b'"completed_at_ms":1}',
            b'{"v":1,"state":"running","fingerprint":"abc","owner":"ab","attempt":1,"fence":1,'
            b'"lease_until_ms":99999999999999,"retention_ms":1}',
            b'{"v":1,"state":"completed","fingerprint":"ab","owner":"ab","attempt":1,"fence":1,'
            b'"completed_at_ms":%b}' % (b"9" * 5000),
        ],
        ids=[
            "cut off",
            "too short",
            "empty",
            "nothing",
            "half a byte",
            "half a byte, running",
            "no such time",
        ],
    )
    async def test_a_damaged_record_is_corrupt_and_never_adopted(self, redis_server, key, damage) -> None:
        await self.put(redis_server, key, damage)
        async with opened(redis_server.port, adopt=lambda value: b"{}" if b"v" in value else None) as store:
            with pytest.raises(CorruptRecord):
                await acquire(store, key)

    async def test_a_value_of_another_type_is_corrupt(self, redis_server: Server, key) -> None:
        with redis_server.client() as client:
            client.lpush(f"idempotency:{key}", "x")
        async with opened(redis_server.port) as store:
            with pytest.raises(CorruptRecord):
                await acquire(store, key)
