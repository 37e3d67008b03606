"""Stores opened by a URL: accepted and refused URLs, and that no password is shown."""

from __future__ import annotations

import secrets
import traceback
from pathlib import Path

import pytest
from patience import with_long_deadline
from redis_servers import Cluster, Sentinels, Server

from idempotency import Acquired, Completed, Fingerprint, Owner, StorageKey
from idempotency.stores.url import open_store, open_sync_store

pytestmark = pytest.mark.anyio

ACQUIRE = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def completes_and_replays(url: str) -> bool:
    """Whether a record is claimed, completed and replayed through the store of *url*."""
    store = open_store(url)
    try:
        key = StorageKey(f"url-{secrets.token_hex(8)}")
        reply = await store.acquire(key, owner=Owner(secrets.token_bytes(16)), **ACQUIRE)
        assert isinstance(reply, Acquired)
        assert await store.complete(reply.claim, b'{"n":1}', retention=60.0)
        again = await store.acquire(key, owner=Owner(secrets.token_bytes(16)), **ACQUIRE)
        return isinstance(again, Completed) and again.outcome == b'{"n":1}'
    finally:
        await store.aclose()


def completes_and_replays_sync(url: str) -> bool:
    store = open_sync_store(url)
    try:
        key = StorageKey(f"url-{secrets.token_hex(8)}")
        reply = store.acquire(key, owner=Owner(secrets.token_bytes(16)), **ACQUIRE)
        assert isinstance(reply, Acquired)
        assert store.complete(reply.claim, b'{"n":1}', retention=60.0)
        again = store.acquire(key, owner=Owner(secrets.token_bytes(16)), **ACQUIRE)
        return isinstance(again, Completed) and again.outcome == b'{"n":1}'
    finally:
        store.close()


async def test_a_memory_url_opens_both_stores() -> None:
    assert await completes_and_replays("memory:?max_records=5")
    assert completes_and_replays_sync("memory:")


async def test_a_sqlite_url_opens_the_file_at_its_path(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/records.db?busy_timeout=2"
    assert await completes_and_replays(url)
    assert completes_and_replays_sync(url)
    assert (tmp_path / "records.db").exists()


async def test_a_redis_url_accepts_options_of_the_store(redis_url: str) -> None:
    url = f"{redis_url}?prefix=url:&deadline=30&on_eviction=refuse"
    assert await completes_and_replays(url)
    assert completes_and_replays_sync(url)


async def test_a_sentinel_url_names_hosts_and_a_service(redis_sentinels: Sentinels) -> None:
    port, name = redis_sentinels.sentinel.port, redis_sentinels.name
    url = f"redis+sentinel://127.0.0.1:{port}/{name}/0?wait_replicas=1&deadline=30"
    assert await completes_and_replays(url)
    assert completes_and_replays_sync(url)


async def test_a_cluster_url_may_name_any_of_its_nodes(redis_cluster: Cluster) -> None:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in redis_cluster.nodes[1:])
    assert await completes_and_replays(with_long_deadline(f"redis+cluster://{hosts}"))
    assert completes_and_replays_sync(with_long_deadline(f"redis+cluster://{hosts}"))


async def test_a_postgresql_url_accepts_options_of_the_store_and_of_libpq(postgres_url: str) -> None:
    mark = "&" if "?" in postgres_url else "?"
    url = f"{postgres_url}{mark}pool_size=2&deadline=30&application_name=records"
    assert await completes_and_replays(url)
    assert completes_and_replays_sync(url)


@pytest.mark.parametrize("open_any", [open_store, open_sync_store])
@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("mongodb://host/db", "redis+sentinel"),
        ("records.db", "sqlite"),
        ("memory:?size=3", "max_records"),
        ("memory:?max_records=many", "max_records"),
        ("memory://host", "neither a host"),
        ("sqlite://host/x.db", "sqlite:////absolute.db"),
        ("sqlite:///", "a path"),
        ("sqlite:///x.db?timeout=3", "busy_timeout"),
        ("redis://localhost/first", "number of a database"),
        ("redis://localhost:port/0", "ports"),
        ("redis://a,b/0", "redis+sentinel"),
        ("redis://localhost/0?on_eviction=ignore", "on_eviction"),
        ("redis://localhost/0?ssl_certfile=x", "deadline"),
        ("redis+sentinel://localhost:26379", "name of the service"),
        ("redis+cluster:", "hosts"),
        ("postgresql://localhost/db?sslmod=require", "libpq"),
        ("postgresql://localhost/db?pool_size=large", "pool_size"),
        ("postgresql://localhost/db?table=Drop%20it", "plain lower-case name"),
    ],
)
def test_an_invalid_url_is_refused_with_a_hint(open_any, url: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        open_any(url)
    assert hint in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@localhost:x/0",
        "redis://user:hunter2@localhost/0?nope=1",
        "redis+sentinel://user:hunter2@localhost:26379/s/zero",
        "postgresql://user:hunter2@localhost/db?nope=1",
        "nope://user:hunter2@localhost",
    ],
)
def test_the_error_for_an_invalid_url_does_not_show_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        open_store(url)
    printed = "".join(traceback.format_exception(refused.value))
    assert "hunter2" not in printed.replace(url, "")  # the traceback quotes this test's own lines


def test_the_repr_of_an_opened_store_does_not_show_its_password() -> None:
    for url in ("redis://user:hunter2@localhost/0", "postgresql://user:hunter2@localhost/db"):
        assert "hunter2" not in repr(open_store(url))


async def test_adopt_converts_foreign_values_in_redis_and_is_refused_by_other_stores(
    redis_server: Server,
) -> None:
    store = open_store(with_long_deadline(redis_server.url), adopt=lambda value: b'{"n":%b}' % value)
    with redis_server.client() as client:
        key = StorageKey(f"url-{secrets.token_hex(8)}")
        client.set(f"idempotency:{key}", "7", ex=60)
    reply = await store.acquire(key, owner=Owner(secrets.token_bytes(16)), **ACQUIRE)
    await store.aclose()
    assert isinstance(reply, Completed)
    assert reply.outcome == b'{"n":7}'
    with pytest.raises(ValueError, match="does not take adopt"):
        open_store("memory:", adopt=lambda value: value)
