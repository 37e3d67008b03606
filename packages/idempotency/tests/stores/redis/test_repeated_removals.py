"""A removal whose reply was lost raises StoreUnavailable: its repeat cannot tell whether the first one took effect."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from patience import PATIENCE, until, with_long_deadline
from redis_proxy import Proxy

from idempotency import Acquired, Claim, Fingerprint, Owner, StorageKey
from idempotency.cli import main
from idempotency.errors import StoreUnavailable
from idempotency.stores.redis import RedisStore, SyncRedisStore

pytestmark = pytest.mark.anyio

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"removed-{secrets.token_hex(8)}")


@pytest.fixture
async def store(redis_proxy: Proxy) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis.asyncio.Redis(port=redis_proxy.port), deadline=PATIENCE, owns_client=True)
    warm = await store.acquire(StorageKey("warm"), owner=new_owner(), **ACQUIRE)
    if isinstance(warm, Acquired):
        await store.release(warm.claim)
    await store.forget(StorageKey("warm"))
    yield store
    await store.aclose()


@pytest.fixture
def sync_store(redis_proxy: Proxy) -> Iterator[SyncRedisStore]:
    with redis.Redis(port=redis_proxy.port) as client:
        store = SyncRedisStore(client, deadline=PATIENCE)
        warm = store.acquire(StorageKey("warm"), owner=new_owner(), **ACQUIRE)
        if isinstance(warm, Acquired):
            store.release(warm.claim)
        store.forget(StorageKey("warm"))
        yield store
        store.close()


def new_owner() -> Owner:
    return Owner(secrets.token_bytes(16))


async def claimed(store: RedisStore, key: StorageKey) -> Claim:
    reply = await store.acquire(key, owner=new_owner(), **ACQUIRE)
    assert isinstance(reply, Acquired)
    return reply.claim


async def test_a_release_whose_reply_was_lost_raises_store_unavailable_and_a_second_one_returns_false(
    store, redis_proxy, key
) -> None:
    granted = await claimed(store, key)
    redis_proxy.fail_next("EVALSHA", "lose reply")
    with pytest.raises(StoreUnavailable, match="may or may not"):
        await store.release(granted)
    assert await store.release(granted) is False
    assert await store.get(key) is None


async def test_a_release_whose_request_was_lost_is_repeated(store, redis_proxy, key) -> None:
    granted = await claimed(store, key)
    redis_proxy.fail_next("EVALSHA", "lose request")
    assert await store.release(granted) is True


async def test_a_forget_whose_reply_was_lost_raises_store_unavailable_and_a_second_one_returns_false(
    store, redis_proxy, key
) -> None:
    await claimed(store, key)
    redis_proxy.fail_next("EVALSHA", "lose reply")
    with pytest.raises(StoreUnavailable, match="may or may not"):
        await store.forget(key)
    assert await store.forget(key) is False


async def test_a_renewal_or_completion_whose_reply_was_lost_is_repeated_and_returns_true(
    store, redis_proxy, key
) -> None:
    granted = await claimed(store, key)
    redis_proxy.fail_next("EVALSHA", "lose reply")
    assert await store.renew(granted, lease=30.0) is True
    redis_proxy.fail_next("EVALSHA", "lose reply")
    assert await store.complete(granted, b'{"n":1}', retention=60.0) is True


async def test_a_forget_on_a_connection_lost_before_the_call_returns_false(store, redis_proxy, key) -> None:
    """Nothing was sent on it, so that the repeat's answer is certain."""
    connection = store._to(store._only)._connection
    assert connection is not None
    redis_proxy.cut()
    await until(lambda: connection.lost)
    assert await store.forget(key) is False


class TestSyncStore:
    def test_a_release_whose_reply_was_lost_raises_store_unavailable_and_a_second_one_returns_false(
        self, sync_store: SyncRedisStore, redis_proxy: Proxy, key: StorageKey
    ) -> None:
        granted = sync_store.acquire(key, owner=new_owner(), **ACQUIRE)
        redis_proxy.fail_next("EVALSHA", "lose reply")
        with pytest.raises(StoreUnavailable, match="may or may not"):
            sync_store.release(granted.claim)
        assert sync_store.release(granted.claim) is False

    def test_a_forget_whose_reply_was_lost_raises_store_unavailable_and_a_second_one_returns_false(
        self, sync_store: SyncRedisStore, redis_proxy: Proxy, key: StorageKey
    ) -> None:
        sync_store.acquire(key, owner=new_owner(), **ACQUIRE)
        redis_proxy.fail_next("EVALSHA", "lose reply")
        with pytest.raises(StoreUnavailable, match="may or may not"):
            sync_store.forget(key)
        assert sync_store.forget(key) is False

    def test_a_release_whose_request_was_lost_is_repeated(
        self, sync_store: SyncRedisStore, redis_proxy: Proxy, key: StorageKey
    ) -> None:
        granted = sync_store.acquire(key, owner=new_owner(), **ACQUIRE)
        redis_proxy.fail_next("EVALSHA", "lose request")
        assert sync_store.release(granted.claim) is True


def test_the_command_reports_that_a_release_may_or_may_not_have_taken_effect(
    redis_proxy: Proxy, redis_url: str, key: StorageKey, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        store = SyncRedisStore(client, deadline=PATIENCE)
        reply = store.acquire(key, owner=new_owner(), **ACQUIRE)
        assert isinstance(reply, Acquired)
        store.complete(reply.claim, b'{"format":1,"outcome":"value","value":1}', retention=60.0)
        url = with_long_deadline(f"redis://127.0.0.1:{redis_proxy.port}/0")
        assert main(["show", key, "--stored", "--store", url]) == 0  # which loads get.lua
        store.forget(StorageKey(f"{key}-none"))  # which loads forget.lua
        capsys.readouterr()
        redis_proxy.commands.clear()
        take_fault = redis_proxy._take_fault
        seen: list[str] = []

        def second_call_loses_its_reply(name: str) -> Any:
            seen.append(name)
            return "lose reply" if name == "EVALSHA" and seen.count("EVALSHA") == 2 else take_fault(name)

        redis_proxy._take_fault = second_call_loses_its_reply  # type: ignore[method-assign]
        code = main(["release", key, "--stored", "--force", "--store", url])
        printed = capsys.readouterr()
        assert store.get(key) is None
        assert code == 2
        assert "may or may not have taken effect" in printed.err
        assert "changed while" not in printed.err
        store.close()
