"""Redis over TLS: the whole life of a record, and no word to a server whose certificate is not the right one."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from patience import PATIENCE
from redis_servers import Server
from redis_tls import Authority, TlsProxy, start_tls_proxy

from idempotency import Acquired, Completed, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.stores.url import open_store, open_sync_store

pytestmark = pytest.mark.anyio

FINGERPRINT = Fingerprint(b"f" * 32)
OUTCOME = b'{"body":"' + b"x" * 300_000 + b'"}'


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def proxy(authority: Authority, redis_server: Server) -> Iterator[TlsProxy]:
    with start_tls_proxy(redis_server.port, authority.sign("127.0.0.1")) as proxy:
        yield proxy


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"tls-{secrets.token_hex(8)}")


def url(proxy: TlsProxy, trusted: Path, scheme: str = "rediss", **options: str) -> str:
    query = "".join(f"&{name}={value}" for name, value in options.items())
    return f"{scheme}://127.0.0.1:{proxy.port}?ssl_ca_certs={quote(str(trusted))}&deadline={PATIENCE}{query}"


def question() -> dict[str, object]:
    owner = Owner(secrets.token_bytes(16))
    return {"fingerprint": FINGERPRINT, "owner": owner, "lease": 30.0, "retention": 60.0}


async def test_the_whole_life_of_a_record(proxy: TlsProxy, authority: Authority, key) -> None:
    store = open_store(url(proxy, authority.certificate))
    reply = await store.acquire(key, **question())
    assert isinstance(reply, Acquired)
    assert await store.renew(reply.claim, lease=30.0)
    assert await store.complete(reply.claim, OUTCOME, retention=60.0)
    replays = await asyncio.gather(*(store.acquire(key, **question()) for _ in range(64)))
    assert [type(replay) for replay in replays] == [Completed] * 64
    assert {replay.outcome for replay in replays} == {OUTCOME}
    await store.aclose()


def test_the_same_without_an_event_loop(proxy: TlsProxy, authority: Authority, key) -> None:
    store = open_sync_store(url(proxy, authority.certificate))
    reply = store.acquire(key, **question())
    assert isinstance(reply, Acquired)
    assert store.complete(reply.claim, OUTCOME, retention=60.0)
    replay = store.acquire(key, **question())
    assert isinstance(replay, Completed)
    assert replay.outcome == OUTCOME
    store.close()


class TestRefused:
    """A server that cannot show who it is gets no key, no password and no claim: there is no way around TLS."""

    @pytest.fixture
    def stranger(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path, "stranger")

    async def test_a_certificate_that_nobody_vouches_for(
        self, proxy: TlsProxy, stranger: Authority, key
    ) -> None:
        handshakes = proxy.handshakes
        store = open_store(url(proxy, stranger.certificate))
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"certificate.*ssl_ca_certs"):
            await store.acquire(key, **question())
        assert time.monotonic() - started < PATIENCE / 2, "long before the deadline"
        assert proxy.handshakes == handshakes
        await store.aclose()

    def test_the_same_without_an_event_loop(self, proxy: TlsProxy, stranger: Authority, key) -> None:
        handshakes = proxy.handshakes
        store = open_sync_store(url(proxy, stranger.certificate))
        with pytest.raises(StoreUnavailable, match=r"certificate.*ssl_ca_certs"):
            store.acquire(key, **question())
        assert proxy.handshakes == handshakes
        store.close()

    async def test_a_certificate_of_another_host(
        self, authority: Authority, redis_server: Server, key
    ) -> None:
        with start_tls_proxy(redis_server.port, authority.sign("redis.test")) as proxy:
            store = open_store(url(proxy, authority.certificate, ssl_check_hostname="true"))
            with pytest.raises(StoreUnavailable, match=r"certificate.*ssl_ca_certs"):
                await store.acquire(key, **question())
            assert proxy.handshakes == 0
            await store.aclose()

    async def test_a_server_without_tls_is_not_spoken_to_in_the_clear(
        self, own_redis: Server, authority: Authority, key
    ) -> None:
        trusted = quote(str(authority.certificate))
        store = open_store(f"rediss://:s3cret@127.0.0.1:{own_redis.port}?ssl_ca_certs={trusted}&deadline=0.5")
        with pytest.raises(StoreUnavailable) as refused:
            await store.acquire(key, **question())
        assert "s3cret" not in str(refused.value)
        with own_redis.client() as client:
            commands = {name for name in client.info("commandstats") if "eval" in name or "auth" in name}
        assert commands == set()
        await store.aclose()

    async def test_a_client_without_tls_is_told_so_in_time(self, proxy: TlsProxy, key) -> None:
        store = open_store(f"redis://127.0.0.1:{proxy.port}?deadline=0.5")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.acquire(key, **question())
        assert time.monotonic() - started < PATIENCE
        await store.aclose()


async def test_sentinels_are_asked_over_tls_too(authority: Authority) -> None:
    """Who may answer for a Sentinel says where the claims are sent."""
    trusted = quote(str(authority.certificate))
    store = open_store(f"rediss+sentinel://a:1,b:2/records?ssl_ca_certs={trusted}&sentinel_password=s")
    for sentinel in store._client.connection_pool.sentinel_manager.sentinels:
        pool = sentinel.connection_pool
        assert pool.connection_class.__name__ == "SSLConnection"
        assert pool.connection_kwargs["ssl_ca_certs"] == str(authority.certificate)
    await store.aclose()
