"""A connection that is slow to open, because its server's name is slow to look up: late, and then there."""

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
    """Finds every name on the loopback, each lookup once the test lets it."""

    def __init__(self) -> None:
        self.lookups: list[asyncio.Future[None]] = []

    async def getaddrinfo(self, host: str, port: int, **hints: Any) -> list[Any]:
        self.lookups.append(asyncio.get_running_loop().create_future())
        await self.lookups[-1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    @property
    def going_on(self) -> int:
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


async def miss(store: RedisStore) -> None:
    with pytest.raises(StoreUnavailable, match="no answer"):
        await store.get(KEY)


async def answered(store: RedisStore) -> None:
    """Ask until there is an answer."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(StoreUnavailable):
                assert await store.get(KEY) is None
                return


async def test_the_lookup_outlives_the_call_and_its_connection_serves_a_later_one(
    store, resolver: Resolver
) -> None:
    await miss(store)
    resolver.lookups[0].set_result(None)  # and no other lookup is ever answered
    await answered(store)


async def test_many_calls_leave_one_lookup_behind(store, resolver: Resolver) -> None:
    for _ in range(3):
        await miss(store)
    await asyncio.gather(*(miss(store) for _ in range(5)))
    await asyncio.sleep(0)
    assert resolver.going_on == 1
    resolver.lookups[0].set_result(None)
    await answered(store)


async def test_a_lookup_that_fails_behind_its_caller_leaves_its_place_to_the_next(
    store, resolver: Resolver
) -> None:
    await miss(store)
    resolver.lookups[0].set_exception(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    await miss(store)
    assert resolver.going_on == 1
    resolver.lookups[-1].set_result(None)
    await answered(store)


async def test_closing_the_store_gives_the_lookup_up(store, resolver: Resolver) -> None:
    await miss(store)
    await store.aclose()
    assert resolver.going_on == 0


async def test_a_name_that_no_resolver_can_be_asked_for_is_an_outage_and_no_crash(
    redis_server: Server,
) -> None:
    client = redis.asyncio.Redis(host="a" * 70 + ".test", port=redis_server.port)
    store = RedisStore(client, owns_client=True, deadline=PATIENCE)
    with pytest.raises(StoreUnavailable):
        await store.get(KEY)
    await store.aclose()
