"""The nodes and slots of a cluster are read by one task at a time, for all callers."""

from __future__ import annotations

import asyncio

import pytest
from patience import until

from idempotency.errors import StoreUnavailable
from idempotency.stores.redis.wire import topology as wire_topology
from idempotency.stores.redis.wire.topology import ClusterTopology

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Client:
    """Like `redis.asyncio.RedisCluster` before 6.2: two that read the nodes at once disturb each other."""

    def __init__(self) -> None:
        self.nodes_manager = Nodes()
        self._is_read = False

    async def initialize(self) -> None:
        if not self._is_read:
            await self.nodes_manager.initialize()
            self._is_read = True


class Nodes:
    def __init__(self) -> None:
        self.answering = asyncio.Event()
        self.under_way = self.read = 0

    async def initialize(self) -> None:
        self.under_way += 1
        try:
            assert self.under_way == 1, "another reads the nodes"
            await self.answering.wait()
            self.read += 1
        finally:
            self.under_way -= 1


async def test_callers_of_a_new_client_share_the_first_reading() -> None:
    client = Client()
    topology = ClusterTopology(client)
    callers = [asyncio.create_task(topology.learn()) for _ in range(3)]
    await until(lambda: client.nodes_manager.under_way)
    client.nodes_manager.answering.set()
    await asyncio.gather(*callers)
    await topology.learn()
    assert client.nodes_manager.read == 1


async def test_a_first_reading_that_its_caller_gave_up_goes_on_for_the_next() -> None:
    client = Client()
    topology = ClusterTopology(client)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await topology.learn()
    topology.renew_in_background()
    next_caller = asyncio.create_task(topology.learn())
    await until(lambda: client.nodes_manager.under_way)
    client.nodes_manager.answering.set()
    await next_caller
    assert client.nodes_manager.read == 1


async def test_a_refresh_reads_again() -> None:
    client = Client()
    client.nodes_manager.answering.set()
    topology = ClusterTopology(client)
    await topology.learn()
    await topology.renew()
    assert client.nodes_manager.read == 2


async def test_callers_that_wait_for_the_nodes_of_a_store_that_is_closed_are_told() -> None:
    client = Client()
    topology = ClusterTopology(client)
    caller = asyncio.create_task(topology.learn())
    await until(lambda: client.nodes_manager.under_way)
    await topology.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await caller
    assert client.nodes_manager.under_way == 0


async def test_a_reading_without_an_answer_ends_and_the_next_caller_begins_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    topology = ClusterTopology(client)
    monkeypatch.setattr(wire_topology, "_LIMIT", 0.0)
    caller = asyncio.create_task(topology.learn())
    await until(caller.done)
    assert isinstance(caller.exception(), TimeoutError)
    monkeypatch.undo()
    client.nodes_manager.answering.set()
    await topology.learn()
    assert client.nodes_manager.read == 1
