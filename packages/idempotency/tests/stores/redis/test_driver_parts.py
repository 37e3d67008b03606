"""The parts of redis-py that the Redis stores rely on exist, private ones included."""

from __future__ import annotations

import inspect

import pytest
import redis
import redis.asyncio
from redis.asyncio.sentinel import SentinelConnectionPool
from redis_servers import Server

MISSING = (
    "redis-py {version} no longer has {part}, which idempotency.stores.redis uses: adapt the store and docs/adr/0002, "
    "or exclude this version in pyproject.toml"
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def require(holds: bool, part: str) -> None:
    if not holds:
        pytest.fail(MISSING.format(version=redis.__version__, part=part), pytrace=False)


def takes(function: object, parameter: str) -> bool:
    return callable(function) and parameter in inspect.signature(function).parameters


@pytest.mark.anyio
async def test_an_open_connection_gives_access_to_its_streams(redis_server: Server) -> None:
    connection = redis.asyncio.Connection(host="127.0.0.1", port=redis_server.port, protocol=2)
    await connection.connect()
    try:
        reader, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
        require(hasattr(reader, "at_eof"), "Connection._reader with at_eof()")
        require(hasattr(writer, "is_closing"), "Connection._writer with is_closing()")
        require(hasattr(getattr(writer, "transport", None), "set_protocol"), "Connection._writer.transport")
    finally:
        await connection.disconnect(nowait=True)


@pytest.mark.parametrize("connection", [redis.Connection, redis.asyncio.Connection], ids=["sync", "async"])
def test_a_connection_sends_packed_commands_without_a_health_check(connection: type) -> None:
    send = getattr(connection, "send_packed_command", None)
    require(
        takes(send, "check_health"), f"{connection.__module__}.Connection.send_packed_command(check_health=)"
    )
    require(hasattr(connection, "read_response"), f"{connection.__module__}.Connection.read_response")


def test_disconnect_takes_nowait_and_can_read_takes_a_timeout() -> None:
    disconnect = redis.asyncio.Connection.disconnect
    require(takes(disconnect, "nowait"), "redis.asyncio.Connection.disconnect(nowait=)")
    require(takes(redis.Connection.can_read, "timeout"), "redis.Connection.can_read(timeout=)")


@pytest.mark.parametrize("client", [redis.Redis, redis.asyncio.Redis], ids=["sync", "async"])
def test_a_client_has_the_class_and_arguments_of_its_connections(client: type) -> None:
    pool = getattr(client(host="localhost"), "connection_pool", None)
    require(
        inspect.isclass(getattr(pool, "connection_class", None)), "Redis.connection_pool.connection_class"
    )
    require(
        isinstance(getattr(pool, "connection_kwargs", None), dict), "Redis.connection_pool.connection_kwargs"
    )


@pytest.mark.parametrize("cluster", [redis.RedisCluster, redis.asyncio.RedisCluster], ids=["sync", "async"])
def test_a_cluster_client_finds_the_node_of_a_key(cluster: type) -> None:
    for part in ("get_node_from_key", "get_node", "get_default_node", "get_primaries"):
        require(hasattr(cluster, part), f"{cluster.__module__}.RedisCluster.{part}")
    manager = inspect.getmodule(cluster).NodesManager  # type: ignore[union-attr]
    require(callable(getattr(manager, "initialize", None)), f"{cluster.__module__}.NodesManager.initialize")


def test_a_sentinel_pool_keeps_its_sentinel_manager() -> None:
    source = inspect.getsource(SentinelConnectionPool)
    require("self.sentinel_manager" in source, "SentinelConnectionPool.sentinel_manager")
