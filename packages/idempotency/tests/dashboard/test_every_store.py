"""The dashboard over every store that can be listed: what it shows, changes and counts there, with real servers."""

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
class Office:
    """A store with records of its own, filled by its synchronous form, and the page over it."""

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
        """Sends the form at *path* and returns the answer."""
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
def office(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Office]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    with stores(request.param, request, tmp_path) as (store, opener):
        store.create_schema()
        shown = opener()

        @asynccontextmanager
        async def closed(_: Starlette) -> AsyncIterator[None]:
            yield
            await shown.aclose()

        audited: list[AuditEvent] = []
        page = dashboard(shown, writable=True, audit=audited.append, actor=lambda _: "carol")
        with TestClient(Starlette(routes=[Mount("/", page)], lifespan=closed)) as client:
            yield Office(store, client, audited)


def test_records_are_listed_by_state_found_and_shown_with_their_answer(office: Office) -> None:
    office.claim("running")
    office.complete("done")
    office.abandon("gone")
    rows = re.findall(r'<td class="key"><a [^>]*>([^<]*)</a></td><td>(\w+)</td>', office.page("/"))
    assert sorted(rows) == [
        ("alice:done", "completed"),
        ("alice:gone", "abandoned"),
        ("alice:running", "running"),
    ]
    assert re.findall(r'<td class="key"><a [^>]*>([^<]*)', office.page("/?state=abandoned")) == ["alice:gone"]
    found = office.page("/find?tenant=alice&key=done")
    assert "<h1>alice:done</h1>" in found
    assert "fe" * 32 in found, "the request's fingerprint"
    assert "charged" not in found
    assert "charged 5 EUR" in office.page("/record?key=alice:done&show=outcome")
    assert [(event.action, event.actor) for event in office.audited] == [("show-outcome", "carol")]


def test_a_running_record_tells_its_age_from_its_claim_or_takeover(office: Office) -> None:
    office.abandon("charge")
    until_sync(lambda: office.record("charge").age > 0.1)
    assert re.search(
        r'<th scope="row">Age</th><td class="whole">[\d.]+ (s|min)<', office.page("/record?key=alice:charge")
    )
    began = time.monotonic()
    assert office.claim("charge").attempt == 2
    age = office.record("charge").age
    assert 0.0 <= age <= time.monotonic() - began + 0.005, (
        "to the millisecond, which is all that some clocks tell"
    )


def test_a_key_is_released_and_a_record_forgotten_after_a_page_that_says_what_will_happen(
    office: Office,
) -> None:
    office.complete("done")
    office.abandon("gone")
    assert "the next request with this key runs" in office.page("/release?key=alice:gone")
    assert "that answer is lost" in office.page("/forget?key=alice:done")
    assert None not in {office.record("gone"), office.record("done")}, "to look changes nothing"
    assert office.confirmed("/release?key=alice:gone").status_code == 200
    assert office.confirmed("/forget?key=alice:done").status_code == 200
    assert (office.record("gone"), office.record("done")) == (None, None)
    assert [(event.action, event.result, event.actor) for event in office.audited] == [
        ("release", "done", "carol"),
        ("forget", "done", "carol"),
    ]


def test_expired_records_are_purged_where_the_store_does_not_delete_them_itself(office: Office) -> None:
    office.claim("expired", lease=0.001, retention=0.001)
    until_sync(lambda: office.record("expired") is None)
    office.claim("running")
    if isinstance(office.store, SyncPurgeable):
        assert "records that have expired are deleted" in office.page("/purge")
        assert office.confirmed("/purge").status_code == 200
        assert [(event.action, event.result) for event in office.audited] == [("purge", "done")]
    else:
        assert office.client.get("/purge").status_code == 404
        assert office.client.post("/purge").status_code == 404
        assert "Purge" not in office.page("/")
    assert office.record("running") is not None


def test_totals_are_counted_over_more_records_than_a_page_of_the_store_holds(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idempotency.dashboard.totals.STEP", 2)
    for number in range(5):
        office.complete(f"done-{number}")
    office.claim("running")
    page = office.page("/totals?count=all")
    told = dict(re.findall(r'<th scope="row">(\w+)</th><td class="number">([^<]*)', page))
    assert told == {"running": "1", "abandoned": "0", "completed": "5", "all": "6"}


def test_rates_add_up_what_several_processes_wrote_into_the_store(office: Office) -> None:
    minute_ago = time.time() - 60.0
    workers = [StoreCounts(office.store, clock=lambda: minute_ago) for _ in range(3)]
    for worker in workers:
        worker(Claimed(operation="o", key_id="k", attempt=1, waited=0.0))
        worker(Replayed(operation="o", key_id="k", age=1.0, waited=0.0))
        worker.close()
    workers[0](Replayed(operation="o", key_id="k", age=1.0, waited=0.0))
    told = dict(re.findall(r'<th scope="row">([\w ]+)</th><td class="number">(\d+)', office.page("/rates")))
    assert told == {"hits": "3", "misses": "3", "conflicts": "0", "takeovers": "0", "lost claims": "0"}
    records, cursor = [], None
    while True:
        page = office.store.scan(cursor=cursor)
        records, cursor = [*records, *page.records], page.cursor
        if cursor is None:
            break
    assert len([record for record in records if is_count(StorageKey(record.key))]) == 3
    assert re.findall('class="key"', office.page("/")) == [], "counts are no client's records"
