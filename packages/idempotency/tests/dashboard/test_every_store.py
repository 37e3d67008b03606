"""The dashboard over every store that can be listed, with real servers: pages, forms and totals."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django_project import configure
from patience import until_sync, with_long_deadline
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from idempotency import Acquired, Fingerprint, Owner, Response, StorageKey, storage_key
from idempotency._core.outcome import encode_response
from idempotency.counts import StoreCounts
from idempotency.counts.record import is_count
from idempotency.dashboard import AuditEvent, dashboard
from idempotency.events import Claimed, Replayed
from idempotency.store import ManagedStore, SyncManagedStore, SyncPurgeable
from idempotency.stores.encrypted import EncryptedStore, KeyRing, SyncEncryptedStore
from idempotency.stores.memory import SyncMemoryStore
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore
from idempotency.stores.threaded import ThreadedStore
from idempotency.stores.url import open_store, open_sync_store

KINDS = [
    "memory",
    "sqlite",
    "redis",
    "postgresql",
    "mariadb",
    "sqlalchemy",
    "django",
    "dynamodb",
    "encrypted",
]
ANSWER = encode_response(Response(201, [(b"content-type", b"text/plain")], b"charged 5 EUR"))
RING = KeyRing({"k": bytes(32)}, current="k")


@dataclass
class Site:
    """A store with records of its own, filled through its synchronous form, and a client of its dashboard."""

    store: SyncManagedStore
    client: TestClient
    audited: list[AuditEvent] = field(default_factory=list)

    def claim(self, key: str, lease: float = 600.0, retention: float = 600.0) -> Any:
        reply = self.store.acquire(
            storage_key("alice", key),
            fingerprint=Fingerprint(b"\xfe" * 32),
            owner=Owner(secrets.token_bytes(16)),
            lease=lease,
            retention=retention,
        )
        assert isinstance(reply, Acquired)
        return reply.claim

    def complete(self, key: str) -> None:
        assert self.store.complete(self.claim(key), ANSWER, retention=600.0)

    def abandon(self, key: str) -> None:
        self.claim(key, lease=0.001)
        until_sync(lambda: self.record(key).lease_left <= 0)

    def record(self, key: str) -> Any:
        return self.store.get(storage_key("alice", key))

    def page(self, path: str) -> str:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return unescape(answer.text)

    def confirmed(self, path: str) -> Any:
        """Send the form at *path* and return the response."""
        page = self.client.get(path).text
        return self.client.post(
            path.partition("?")[0], data=dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
        )


def urls(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    name = f"dashboard_{secrets.token_hex(6)}"
    match kind:
        case "sqlite":
            return f"sqlite:///{folder}/records.db?synchronous=OFF"
        case "redis":
            return with_long_deadline(f"{request.getfixturevalue('redis_url')}?prefix={name}:")
        case "postgresql":
            dsn = request.getfixturevalue("postgres_url")
            return with_long_deadline(f"{dsn}{'&' if '?' in dsn else '?'}table={name}")
        case "mariadb":
            return with_long_deadline(f"mysql://{request.getfixturevalue('mariadb_server_url')}?table={name}")
        case "sqlalchemy":
            return f"sqlite+aiosqlite:///{folder}/records.db"
        case _:
            endpoint = quote(request.getfixturevalue("dynamodb_url"), safe="")
            return with_long_deadline(
                f"dynamodb://{name}?region=eu-central-1&endpoint={endpoint}&max_clock_skew=0"
            )


@contextmanager
def stores(
    kind: str, request: pytest.FixtureRequest, folder: Path
) -> Iterator[tuple[SyncManagedStore, Callable[[], ManagedStore]]]:
    """A store of the kind, and what opens its asynchronous form."""
    if kind == "memory":
        memory = SyncMemoryStore()
        yield memory, lambda: ThreadedStore(memory)
    elif kind == "django":
        configure()
        from idempotency.stores.django import SyncDjangoStore

        table = f"dashboard_{secrets.token_hex(6)}"
        with closing(SyncDjangoStore(table=table)) as store:
            yield store, lambda: ThreadedStore(SyncDjangoStore(table=table))
    elif kind == "encrypted":
        path = folder / "records.db"
        with closing(SyncEncryptedStore(SyncSQLiteStore(path, synchronous="OFF"), RING)) as sealed:
            yield sealed, lambda: EncryptedStore(SQLiteStore(path, synchronous="OFF"), RING)
    else:
        url = urls(kind, request, folder)
        sync_url = url.replace("aiosqlite", "pysqlite")
        with closing(open_sync_store(sync_url)) as store:
            yield store, lambda: open_store(url)


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    with stores(request.param, request, tmp_path) as (store, opener):
        store.create_schema()
        async_store = opener()

        @asynccontextmanager
        async def closed(_: Starlette) -> AsyncIterator[None]:
            yield
            await async_store.aclose()

        audited: list[AuditEvent] = []
        page = dashboard(async_store, writable=True, audit=audited.append, actor=lambda _: "carol")
        with TestClient(Starlette(routes=[Mount("/", page)], lifespan=closed)) as client:
            yield Site(store, client, audited)


def test_records_can_be_listed_filtered_found_and_shown(site: Site) -> None:
    site.claim("running")
    site.complete("done")
    site.abandon("gone")
    rows = re.findall(r'<td class="key"><a [^>]*>([^<]*)</a></td><td>(\w+)</td>', site.page("/"))
    assert sorted(rows) == [
        ("alice:done", "completed"),
        ("alice:gone", "abandoned"),
        ("alice:running", "running"),
    ]
    assert re.findall(r'<td class="key"><a [^>]*>([^<]*)', site.page("/?state=abandoned")) == ["alice:gone"]
    found = site.page("/find?tenant=alice&key=done")
    assert "<h1>alice:done</h1>" in found
    assert "fe" * 32 in found, "the request's fingerprint"
    assert "charged" not in found
    assert "charged 5 EUR" in site.page("/record?key=alice:done&show=outcome")
    assert [(event.action, event.actor) for event in site.audited] == [("show-outcome", "carol")]


def test_age_of_a_running_record_starts_at_its_claim_or_takeover(site: Site) -> None:
    site.abandon("charge")
    until_sync(lambda: site.record("charge").age > 0.1)
    assert re.search(
        r'<th scope="row">Age</th><td class="whole">[\d.]+ (s|min)<', site.page("/record?key=alice:charge")
    )
    began = time.monotonic()
    assert site.claim("charge").attempt == 2
    age = site.record("charge").age
    assert 0.0 <= age <= time.monotonic() - began + 0.005, "to the millisecond, the resolution of some clocks"


def test_release_and_forget_ask_for_confirmation_and_are_audited(
    site: Site,
) -> None:
    site.complete("done")
    site.abandon("gone")
    assert "the next request with this key runs" in site.page("/release?key=alice:gone")
    assert "that answer is lost" in site.page("/forget?key=alice:done")
    assert None not in {site.record("gone"), site.record("done")}, "the confirmation page changes nothing"
    assert site.confirmed("/release?key=alice:gone").status_code == 200
    assert site.confirmed("/forget?key=alice:done").status_code == 200
    assert (site.record("gone"), site.record("done")) == (None, None)
    assert [(event.action, event.result, event.actor) for event in site.audited] == [
        ("release", "done", "carol"),
        ("forget", "done", "carol"),
    ]


def test_purge_is_offered_only_for_stores_that_keep_expired_records(site: Site) -> None:
    site.claim("expired", lease=0.001, retention=0.001)
    until_sync(lambda: site.record("expired") is None)
    site.claim("running")
    if isinstance(site.store, SyncPurgeable):
        assert "records that have expired are deleted" in site.page("/purge")
        assert site.confirmed("/purge").status_code == 200
        assert [(event.action, event.result) for event in site.audited] == [("purge", "done")]
    else:
        assert site.client.get("/purge").status_code == 404
        assert site.client.post("/purge").status_code == 404
        assert "Purge" not in site.page("/")
    assert site.record("running") is not None


def test_totals_are_counted_over_several_pages_of_the_store(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idempotency.dashboard.totals.STEP", 2)
    for number in range(5):
        site.complete(f"done-{number}")
    site.claim("running")
    page = site.page("/totals?count=all")
    shown = dict(re.findall(r'<th scope="row">(\w+)</th><td class="number">([^<]*)', page))
    assert shown == {"running": "1", "abandoned": "0", "completed": "5", "all": "6"}


def test_rates_add_up_the_counts_of_several_processes(site: Site) -> None:
    minute_ago = time.time() - 60.0
    workers = [StoreCounts(site.store, clock=lambda: minute_ago) for _ in range(3)]
    for worker in workers:
        worker(Claimed(operation="o", key_id="k", attempt=1, waited=0.0))
        worker(Replayed(operation="o", key_id="k", age=1.0, waited=0.0))
        worker.close()
    workers[0](Replayed(operation="o", key_id="k", age=1.0, waited=0.0))
    shown = dict(re.findall(r'<th scope="row">([\w ]+)</th><td class="number">(\d+)', site.page("/rates")))
    assert shown == {"hits": "3", "misses": "3", "conflicts": "0", "takeovers": "0", "lost claims": "0"}
    records, cursor = [], None
    while True:
        page = site.store.scan(cursor=cursor)
        records, cursor = [*records, *page.records], page.cursor
        if cursor is None:
            break
    assert len([record for record in records if is_count(StorageKey(record.key))]) == 3
    assert re.findall('class="key"', site.page("/")) == [], (
        "counts are not listed among the records of clients"
    )
