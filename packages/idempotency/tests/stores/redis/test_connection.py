"""The connection that all callers of a Redis store share: callers do not disturb each other, and closing ends it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import threading
from collections.abc import AsyncIterator

import anyio
import pytest
import redis
import redis.asyncio
import uvloop
from loop_time import advance, movable
from patience import PATIENCE, until_sync
from redis_proxy import Proxy
from redis_servers import Server

from idempotency import Acquired, Claim, Completed, Fingerprint, Owner, Policy, StorageKey
from idempotency.engine import Engine
from idempotency.engine.request import Ask
from idempotency.errors import StoreUnavailable
from idempotency.events import Event, StoreFailed
from idempotency.stores.redis import RedisStore, SyncRedisStore

pytestmark = pytest.mark.anyio

FINGERPRINT = Fingerprint(b"f" * 32)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"link-{secrets.token_hex(8)}")


@pytest.fixture
async def proxied(redis_proxy: Proxy) -> AsyncIterator[RedisStore]:
    """A store behind the faulty proxy, its connection open."""
    store = RedisStore(redis.asyncio.Redis(port=redis_proxy.port), deadline=PATIENCE, owns_client=True)
    await claim(store, StorageKey(f"warm-up-{secrets.token_hex(8)}"))
    yield store
    await store.aclose()


async def acquire(store: RedisStore, key: StorageKey) -> object:
    owner = Owner(secrets.token_bytes(16))
    return await store.acquire(key, fingerprint=FINGERPRINT, owner=owner, lease=30.0, retention=60.0)


async def claim(store: RedisStore, key: StorageKey) -> Claim:
    reply = await acquire(store, key)
    assert isinstance(reply, Acquired)
    return reply.claim


def connections(server: Server) -> int:
    """The number of connections since the statistics were reset, that of this query included."""
    with server.client() as client:
        return int(client.info("stats")["total_connections_received"])


def assert_none_is_open(server: Server) -> None:
    """Waits until the server has no connection but that of this query."""
    with server.client() as client:
        until_sync(lambda: len(client.client_list()) == 1)


class TestSharing:
    async def test_a_cancelled_call_keeps_the_shared_connection_open(self, own_redis: Server, key) -> None:
        store = RedisStore(redis.asyncio.Redis(port=own_redis.port), owns_client=True, deadline=PATIENCE)
        await claim(store, key)
        before = connections(own_redis)
        for number in range(50):
            cancelled = asyncio.create_task(acquire(store, StorageKey(f"cancelled-{number}")))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            cancelled.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await cancelled
            assert (await store.get(key)).key == key
        assert connections(own_redis) == before + 1, "the connection of this query"
        await store.aclose()

    async def test_a_cancelled_first_caller_does_not_cancel_the_connecting_for_the_second(
        self, own_redis: Server, key
    ) -> None:
        store = RedisStore(redis.asyncio.Redis(port=own_redis.port), owns_client=True, deadline=PATIENCE)
        first = asyncio.create_task(acquire(store, key))
        second = asyncio.create_task(acquire(store, key))
        await asyncio.sleep(0)
        first.cancel()
        assert isinstance(await second, Acquired)
        assert first.cancelled()
        await store.aclose()

    @pytest.mark.parametrize("anyio_backend", [movable("asyncio")])
    async def test_a_caller_with_time_left_replaces_a_silent_connection(
        self, redis_proxy: Proxy, key
    ) -> None:
        store = RedisStore(redis.asyncio.Redis(port=redis_proxy.port), deadline=4.0, owns_client=True)
        await claim(store, StorageKey(f"{key}-warm-up"))
        redis_proxy.fail_next("EVALSHA", "hang")
        early = asyncio.create_task(acquire(store, StorageKey(f"{key}-early")))
        await advance(2.0)
        late = asyncio.create_task(acquire(store, StorageKey(f"{key}-late")))
        await advance(2.0)
        with pytest.raises(StoreUnavailable, match="may be repeated"):
            await early
        assert isinstance(await late, Acquired)
        await store.aclose()

    async def test_one_callers_timeout_does_not_close_a_connection_that_still_answers(
        self, own_redis: Server, key
    ) -> None:
        store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
        await claim(store, key)
        connection = store._to(store._only)
        own_redis.freeze()
        loop = asyncio.get_running_loop()
        patient = asyncio.create_task(store.get(key))
        with pytest.raises(TimeoutError):
            await connection.send(_get(store, key), loop.time() + 0.05)
        own_redis.thaw()
        assert await patient is not None
        assert connections(own_redis) == 1 + 2, "the fixture's, the store's, and that of this query"
        await store.aclose()

    async def test_an_unexpected_reply_never_reaches_a_later_caller(
        self, proxied: RedisStore, redis_proxy: Proxy, key
    ) -> None:
        redis_proxy.fail_next("EVALSHA", b":1\r\n:2\r\n")
        with contextlib.suppress(Exception):
            await acquire(proxied, key)  # either reply may be the answer, so neither counts
        for number in range(20):
            other = StorageKey(f"{key}-{number}")
            assert (await claim(proxied, other)).key == other
            assert (await proxied.get(other)).key == other

    async def test_ten_thousand_concurrent_callers_are_all_served(self, own_redis: Server) -> None:
        store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
        replies = await asyncio.gather(
            *(acquire(store, StorageKey(f"k-{number}")) for number in range(10_000))
        )
        assert {type(reply) for reply in replies} == {Acquired}
        await store.aclose()

    async def test_a_request_waits_unsent_while_the_server_does_not_read(
        self, own_redis: Server, key
    ) -> None:
        store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
        granted = await claim(store, key)
        own_redis.freeze()
        outcome = b'{"body":"' + b"x" * 16_000_000 + b'"}'
        big = asyncio.create_task(store.complete(granted, outcome, retention=60.0))
        await anyio.wait_all_tasks_blocked()
        queued = asyncio.create_task(acquire(store, StorageKey("queued")))
        await anyio.wait_all_tasks_blocked()
        queued.cancel()
        own_redis.thaw()
        assert await big is True
        assert await store.get(StorageKey("queued")) is None, "cancelled before it was written"
        await store.aclose()

    def test_a_store_works_under_uvloop(self, redis_server: Server, key) -> None:
        async def use() -> list[object]:
            store = RedisStore(
                redis.asyncio.Redis(port=redis_server.port), owns_client=True, deadline=PATIENCE
            )
            granted = await claim(store, key)
            await store.complete(granted, b'{"body":"' + b"x" * 500_000 + b'"}', retention=60.0)
            replies = await asyncio.gather(*(acquire(store, key) for _ in range(64)))
            await store.aclose()
            return replies

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            replies = runner.run(use())
        assert {type(reply) for reply in replies} == {Completed}
        assert {len(reply.outcome) for reply in replies} == {500_000 + 11}


class TestClosing:
    async def test_a_closed_store_refuses_calls_and_opens_no_connection(self, own_redis: Server, key) -> None:
        store = RedisStore(redis.asyncio.Redis(port=own_redis.port), owns_client=True, deadline=PATIENCE)
        granted = await claim(store, key)
        await store.aclose()
        for call in (store.release(granted), store.get(key), acquire(store, key)):
            with pytest.raises(StoreUnavailable, match="closed; open a new one"):
                await call
        await store.aclose()
        assert_none_is_open(own_redis)

    async def test_closing_while_connecting_leaves_no_connection(self, own_redis: Server, key) -> None:
        own_redis.freeze()
        store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
        callers = [asyncio.create_task(acquire(store, key)) for _ in range(3)]
        await anyio.wait_all_tasks_blocked()
        await store.aclose()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
        own_redis.thaw()
        assert_none_is_open(own_redis)

    async def test_a_background_release_after_closing_logs_nothing_and_leaves_no_connection(
        self, own_redis: Server, key, caplog
    ) -> None:
        """As when an application shuts down: the lease ends the claim whose reply was lost."""
        gc.collect()  # so that what earlier tests left is logged now
        caplog.clear()
        unhandled: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        events: list[Event] = []
        store = RedisStore(redis.asyncio.Redis(port=own_redis.port), deadline=PATIENCE, owns_client=True)
        await claim(store, StorageKey("warm-up"))
        engine = Engine(store, hooks=[events.append])
        own_redis.freeze()
        began = asyncio.create_task(
            engine.begin(Ask(key, FINGERPRINT, Policy(wait=0.0), "POST /charges", 0.0))
        )
        await anyio.wait_all_tasks_blocked()
        began.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await began
        await anyio.wait_all_tasks_blocked()
        await store.aclose()
        own_redis.thaw()
        release = engine.release_late(Claim(key, Owner(b"o" * 16), 1, 1), "POST /charges")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(release, 0.6)
        gc.collect()
        assert unhandled == []
        assert [record.getMessage() for record in caplog.records] == []
        assert all(isinstance(event, StoreFailed) for event in events)
        assert_none_is_open(own_redis)

    def test_a_closed_sync_store_refuses_calls(self, own_redis: Server, key) -> None:
        with redis.Redis(port=own_redis.port) as client:
            store = SyncRedisStore(client, deadline=PATIENCE)
            assert store.get(key) is None
            store.close()
            with pytest.raises(StoreUnavailable, match="closed; open a new one"):
                store.get(key)
            assert_none_is_open(own_redis)

    def test_closing_a_sync_store_during_a_call_closes_its_connection_after_the_call(
        self, own_redis: Server, key
    ) -> None:
        with redis.Redis(port=own_redis.port) as client:
            store = SyncRedisStore(client, deadline=PATIENCE)
            assert store.get(key) is None
            sockets = store._to(store._only)
            own_redis.freeze()
            seen: list[object] = []
            thread = threading.Thread(target=lambda: seen.append(store.get(key)))
            thread.start()
            until_sync(lambda: not sockets._idle)  # the thread has taken the connection
            store.close()
            own_redis.thaw()
            thread.join(PATIENCE)
            assert seen == [None]
            assert_none_is_open(own_redis)


def _get(store: RedisStore, key: StorageKey) -> object:
    from idempotency.stores.redis import records

    return records.get(store._name(key))
