"""A store in a loop with eager tasks, where opening a connection may fail before its task is known to the store."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis.asyncio
from eager_tasks import use_eager_tasks
from patience import PATIENCE, until
from redis_servers import start_server

from idempotency import StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.stores.redis import RedisStore

pytestmark = pytest.mark.anyio

KEY = StorageKey("k")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_store_that_was_refused_at_once_connects_when_the_server_is_back(
    redis_binary: Path, tmp_path: Path
) -> None:
    """By a Unix socket a refusal needs no waiting at all."""
    path = tmp_path / "redis.sock"
    with start_server(redis_binary, "--unixsocket", str(path)) as server:
        use_eager_tasks()
        client = redis.asyncio.Redis(unix_socket_path=str(path))
        store = RedisStore(client, owns_client=True, deadline=PATIENCE)

        async def answers() -> bool:
            try:
                return await store.get(KEY) is None
            except StoreUnavailable:
                return False

        assert await answers()
        server.stop()
        assert not await answers()
        server.start()
        await until(answers)
        await store.aclose()
