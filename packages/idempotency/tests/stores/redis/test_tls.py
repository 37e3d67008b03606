"""Redis over TLS: the life of a record, and no command to a server whose certificate is not trusted."""

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


def acquire_arguments() -> dict[str, object]:
    owner = Owner(secrets.token_bytes(16))
    return {"fingerprint": FINGERPRINT, "owner": owner, "lease": 30.0, "retention": 60.0}


async def test_a_record_is_claimed_renewed_completed_and_replayed_over_tls(
    proxy: TlsProxy, authority: Authority, key
) -> None:
    store = open_store(url(proxy, authority.certificate))
    reply = await store.acquire(key, **acquire_arguments())
    assert isinstance(reply, Acquired)
    assert await store.renew(reply.claim, lease=30.0)
    assert await store.complete(reply.claim, OUTCOME, retention=60.0)
    replays = await asyncio.gather(*(store.acquire(key, **acquire_arguments()) for _ in range(64)))
    assert [type(replay) for replay in replays] == [Completed] * 64
    assert {replay.outcome for replay in replays} == {OUTCOME}
    await store.aclose()


def test_a_sync_store_claims_completes_and_replays_over_tls(
    proxy: TlsProxy, authority: Authority, key
) -> None:
    store = open_sync_store(url(proxy, authority.certificate))
    reply = store.acquire(key, **acquire_arguments())
    assert isinstance(reply, Acquired)
    assert store.complete(reply.claim, OUTCOME, retention=60.0)
    replay = store.acquire(key, **acquire_arguments())
    assert isinstance(replay, Completed)
    assert replay.outcome == OUTCOME
    store.close()


class TestRefused:
    """A server without a trusted certificate gets no key, no password and no claim."""

    @pytest.fixture
    def unknown_authority(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path, "unknown_authority")

    async def test_a_certificate_of_an_unknown_authority_is_refused(
        self, proxy: TlsProxy, unknown_authority: Authority, key
    ) -> None:
        handshakes = proxy.handshakes
        store = open_store(url(proxy, unknown_authority.certificate))
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"certificate.*ssl_ca_certs"):
            await store.acquire(key, **acquire_arguments())
        assert time.monotonic() - started < PATIENCE / 2, "long before the deadline"
        assert proxy.handshakes == handshakes
        await store.aclose()

    def test_a_sync_store_refuses_a_certificate_of_an_unknown_authority(
        self, proxy: TlsProxy, unknown_authority: Authority, key
    ) -> None:
        handshakes = proxy.handshakes
        store = open_sync_store(url(proxy, unknown_authority.certificate))
        with pytest.raises(StoreUnavailable, match=r"certificate.*ssl_ca_certs"):
            store.acquire(key, **acquire_arguments())
        assert proxy.handshakes == handshakes
        store.close()

    async def test_a_certificate_of_another_host_is_refused(
        self, authority: Authority, redis_server: Server, key
    ) -> None:
        with start_tls_proxy(redis_server.port, authority.sign("redis.test")) as proxy:
            store = open_store(url(proxy, authority.certificate, ssl_check_hostname="true"))
            with pytest.raises(StoreUnavailable, match=r"certificate.*ssl_ca_certs"):
                await store.acquire(key, **acquire_arguments())
            assert proxy.handshakes == 0
            await store.aclose()

    async def test_a_server_without_tls_is_sent_no_command(
        self, own_redis: Server, authority: Authority, key
    ) -> None:
        trusted = quote(str(authority.certificate))
        store = open_store(f"rediss://:s3cret@127.0.0.1:{own_redis.port}?ssl_ca_certs={trusted}&deadline=0.5")
        with pytest.raises(StoreUnavailable) as refused:
            await store.acquire(key, **acquire_arguments())
        assert "s3cret" not in str(refused.value)
        with own_redis.client() as client:
            commands = {name for name in client.info("commandstats") if "eval" in name or "auth" in name}
        assert commands == set()
        await store.aclose()

    async def test_a_client_without_tls_gets_store_unavailable_from_a_tls_server(
        self, proxy: TlsProxy, key
    ) -> None:
        store = open_store(f"redis://127.0.0.1:{proxy.port}?deadline=0.5")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.acquire(key, **acquire_arguments())
        assert time.monotonic() - started < PATIENCE
        await store.aclose()


async def test_connections_to_sentinels_use_tls(authority: Authority) -> None:
    """A Sentinel decides where the claims are sent."""
    trusted = quote(str(authority.certificate))
    store = open_store(f"rediss+sentinel://a:1,b:2/records?ssl_ca_certs={trusted}&sentinel_password=s")
    for sentinel in store._client.connection_pool.sentinel_manager.sentinels:
        pool = sentinel.connection_pool
        assert pool.connection_class.__name__ == "SSLConnection"
        assert pool.connection_kwargs["ssl_ca_certs"] == str(authority.certificate)
    await store.aclose()
