"""A connection that is slow to open, because the lookup of its server's name is slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from patience import PATIENCE
from redis_servers import Server

from idempotency import StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.stores.redis import RedisStore

pytestmark = pytest.mark.anyio

KEY = StorageKey("slow-to-open")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Resolver:
    """Resolves every name to the loopback, each lookup when the test lets it."""

    def __init__(self) -> None:
        self.lookups: list[asyncio.Future[None]] = []

    async def getaddrinfo(self, host: str, port: int, **hints: Any) -> list[Any]:
        self.lookups.append(asyncio.get_running_loop().create_future())
        await self.lookups[-1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    @property
    def pending(self) -> int:
        return sum(not lookup.done() for lookup in self.lookups)


@pytest.fixture
async def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolver.getaddrinfo)
    return resolver


@pytest.fixture
async def store(resolver: Resolver, redis_server: Server) -> AsyncIterator[RedisStore]:
    client = redis.asyncio.Redis(host="cache.test", port=redis_server.port)
    store = RedisStore(client, deadline=0.05, owns_client=True)
    yield store
    await store.aclose()


async def expect_timeout(store: RedisStore) -> None:
    with pytest.raises(StoreUnavailable, match="no answer"):
        await store.get(KEY)


async def call_until_answered(store: RedisStore) -> None:
    """Repeat a call until it is answered."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(StoreUnavailable):
                assert await store.get(KEY) is None
                return


async def test_a_lookup_continues_after_its_call_timed_out_and_serves_a_later_call(
    store, resolver: Resolver
) -> None:
    await expect_timeout(store)
    resolver.lookups[0].set_result(None)  # and no other lookup ends
    await call_until_answered(store)


async def test_calls_that_timed_out_share_one_pending_lookup(store, resolver: Resolver) -> None:
    for _ in range(3):
        await expect_timeout(store)
    await asyncio.gather(*(expect_timeout(store) for _ in range(5)))
    await asyncio.sleep(0)
    assert resolver.pending == 1
    resolver.lookups[0].set_result(None)
    await call_until_answered(store)


async def test_a_lookup_that_fails_after_its_call_timed_out_is_replaced(store, resolver: Resolver) -> None:
    await expect_timeout(store)
    resolver.lookups[0].set_exception(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    await expect_timeout(store)
    assert resolver.pending == 1
    resolver.lookups[-1].set_result(None)
    await call_until_answered(store)


async def test_closing_the_store_cancels_the_lookup(store, resolver: Resolver) -> None:
    await expect_timeout(store)
    await store.aclose()
    assert resolver.pending == 0


async def test_a_host_name_that_cannot_be_looked_up_raises_store_unavailable(
    redis_server: Server,
) -> None:
    client = redis.asyncio.Redis(host="a" * 70 + ".test", port=redis_server.port)
    store = RedisStore(client, owns_client=True, deadline=PATIENCE)
    with pytest.raises(StoreUnavailable):
        await store.get(KEY)
    await store.aclose()
