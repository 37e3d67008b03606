"""The dashboard: pages, forms and audit, secrets that it hides, and bounded reads of the store."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from idempotency import (
    Acquired,
    Claim,
    Fingerprint,
    Owner,
    Page,
    Policy,
    Response,
    StorageKey,
    StoreUnavailable,
    storage_key,
)
from idempotency._core.outcome import encode_response
from idempotency._core.types import key_id
from idempotency.counts import Counts
from idempotency.dashboard import AuditEvent, dashboard
from idempotency.events import Claimed, ClaimLost, Refused, Replayed
from idempotency.stores.memory import MemoryStore
from idempotency.stores.sqlite import SQLiteStore

ANSWER = encode_response(Response(201, [(b"x-card", b"4242")], b'{"holder": "<b>alice</b>"}'))


class Site:
    """A store with a clock of its own, a client of its dashboard, and the audit events."""

    def __init__(self, **settings: Any) -> None:
        self.now = 0.0
        self.store = MemoryStore(clock=lambda: self.now, max_records=10_000)
        self.audited: list[AuditEvent] = []
        app = dashboard(
            self.store, audit=self.audited.append, actor=lambda _: "carol", **({"writable": True} | settings)
        )
        self.client = TestClient(
            Starlette(routes=[Mount("/keys", app)]),
            base_url="http://office.example/keys/",
            follow_redirects=True,
        )

    def claim(self, key: str, *, tenant: str = "", lease: float = 30.0, owner: bytes = b"o" * 16) -> Claim:
        reply = asyncio.run(
            self.store.acquire(
                StorageKey(key) if "\udcff" in key else storage_key(tenant, key),
                fingerprint=Fingerprint(b"\xfe" * 32),
                owner=Owner(owner),
                lease=lease,
                retention=3600.0,
            )
        )
        assert isinstance(reply, Acquired)
        return reply.claim

    def complete(self, key: str) -> None:
        asyncio.run(self.store.complete(self.claim(key), ANSWER, retention=3600.0))

    def form(self, path: str, action: str) -> dict[str, str]:
        page = self.client.get(path).text
        found = re.search(rf'<form method="post" action="/keys/{action}">(.*?)</form>', page, re.DOTALL)
        assert found, f"no form for {action} at {path}"
        return dict(re.findall(r'name="([^"]+)" value="([^"]*)"', found[1]))

    def record(self, key: str) -> Any:
        return asyncio.run(self.store.get(StorageKey(key) if "\udcff" in key else storage_key("", key)))


@pytest.mark.parametrize(("tenant", "key"), [("alice", "k-1"), ("", "pay:k-77"), ("pay", "k%77")])
def test_find_accepts_a_key_as_the_list_shows_it(tenant: str, key: str) -> None:
    site = Site()
    site.claim(key, tenant=tenant)
    shown = str(storage_key(tenant, key))
    assert shown in site.client.get("").text
    found = site.client.get("find", params={"tenant": "", "key": shown})
    assert (found.status_code, found.url.params["key"]) == (200, shown)


def test_list_shows_state_attempt_lease_age_and_outcome_of_each_key() -> None:
    site = Site()
    site.claim("abandoned", lease=1.0)
    site.now += 2.0
    site.claim("running")
    site.complete("completed")
    site.now += 5.0
    page = site.client.get("").text
    rows = {row[0]: row[1:] for row in re.findall(
        r'<td class="key"><a [^>]*>([^<]*)</a></td><td>(\w+)</td><td class="number">(\d+)</td>'
        r'<td class="number">([^<]*)</td><td class="number">([^<]*)</td><td class="number">[^<]*</td><td>([^<]*)</td>',
        page,
    )}  # fmt: skip
    assert rows == {
        "abandoned": ("abandoned", "1", "over for 6.0 s", "7.0 s", ""),
        "running": ("running", "1", "25.0 s", "5.0 s", ""),
        "completed": ("completed", "1", "", "5.0 s", "response 201"),
    }


def test_list_states_how_many_records_it_shows_and_has_read() -> None:
    site = Site()
    assert "Shown: 0. Of all 0." in site.client.get("").text
    site.claim("running")
    site.complete("done")
    assert "Shown: 2: 1 running, 1 completed. Of all 2." in site.client.get("").text
    for number in range(60):
        site.complete(f"order-{number}")
    assert "Of 50 records that this page read; there may be more." in site.client.get("").text


def test_list_filters_by_tenant_or_state() -> None:
    site = Site()
    site.claim("order-1", tenant="alice")
    site.claim("order-2", tenant="bob")
    site.complete("order-3")
    listed = site.client.get("?tenant=alice").text
    assert "alice:order-1" in listed
    assert "order-2" not in listed
    listed = site.client.get("?state=completed").text
    assert "order-3" in listed
    assert "order-1" not in listed


@pytest.mark.parametrize("typed", ["order-1", '"order-1"', " order-1 "])
def test_find_accepts_a_key_as_the_client_wrote_it(typed: str) -> None:
    site = Site()
    site.claim("order-1", tenant="alice")
    found = site.client.get("find", params={"tenant": "alice", "key": typed})
    assert found.status_code == 200
    assert "<h1>alice:order-1</h1>" in found.text
    assert site.client.get("find", params={"tenant": "bob", "key": typed}).status_code == 404


def test_outcome_is_shown_only_on_request_and_the_request_is_audited() -> None:
    site = Site()
    site.complete("order-1")
    hidden = site.client.get("record?key=order-1").text
    assert "fe" * 32 in hidden, "the request's fingerprint"
    assert "4242" not in hidden
    assert "alice" not in hidden
    assert site.audited == []
    shown = site.client.get("record?key=order-1&show=outcome").text
    assert "x-card: 4242" in shown
    assert "&lt;b&gt;alice&lt;/b&gt;" in shown
    assert "<b>alice" not in shown
    assert site.audited == [
        AuditEvent(
            action="show-outcome", key_id=key_id(storage_key("", "order-1")), actor="carol", result="done"
        )
    ]


def test_redacted_parts_of_an_outcome_are_not_shown() -> None:
    site = Site(policy=Policy(redact=lambda response: response._replace(body=b"***", headers=[])))
    site.complete("order-1")
    shown = site.client.get("record?key=order-1&show=outcome").text
    assert "***" in shown
    assert "4242" not in shown
    assert "alice" not in shown


def test_owner_token_is_never_shown() -> None:
    site = Site()
    site.claim("order-1", owner=b"OWNER-TOKEN-16by")
    page = site.client.get("record?key=order-1").text
    assert "OWNER-TOKEN" not in page
    assert b"OWNER-TOKEN-16by".hex() not in page


def test_release_of_an_abandoned_key_frees_it_and_is_audited() -> None:
    site = Site()
    site.claim("order-1", lease=1.0)
    site.now += 2.0
    done = site.client.post("release", data=site.form("release?key=order-1", "release"))
    assert done.status_code == 200
    assert site.record("order-1") is None
    assert [(event.action, event.actor, event.result, event.count) for event in site.audited] == [
        ("release", "carol", "done", 1)
    ]


def test_release_form_does_not_free_a_key_that_was_taken_over_meanwhile() -> None:
    site = Site()
    site.claim("order-1", lease=1.0)
    site.now += 2.0
    form = site.form("release?key=order-1", "release")
    assert site.claim("order-1", owner=b"second-owner-16b").attempt == 2
    assert site.client.post("release", data=form).status_code == 409
    assert site.record("order-1").attempt == 2
    assert [event.result for event in site.audited] == ["changed"]


def test_completed_record_is_deleted_only_by_the_forget_form() -> None:
    site = Site()
    site.complete("order-1")
    form = site.form("forget?key=order-1", "forget")
    assert site.client.post("release", data=form).status_code == 403
    assert site.record("order-1") is not None
    assert site.client.post("forget", data=form).status_code == 200
    assert site.record("order-1") is None


def test_forged_or_cross_site_form_changes_nothing() -> None:
    site = Site()
    site.claim("order-1")
    site.claim("order-2")
    form = site.form("release?key=order-1", "release")
    attempts = [
        (form | {"token": "0" * 64}, {}),
        (form | {"key": "order-2"}, {}),
        ({**form, "token": ""}, {}),
        (form, {"Sec-Fetch-Site": "cross-site"}),
        (form, {"Sec-Fetch-Site": "same-site"}),
        (form, {"Cookie": "idempotency-dashboard=another-browser"}),
    ]
    for data, headers in attempts:
        cookies = dict(site.client.cookies)
        if "Cookie" in headers:
            site.client.cookies.clear()
        assert site.client.post("release", data=data, headers=headers).status_code == 403, (data, headers)
        for name, value in cookies.items():
            site.client.cookies.set(name, value, domain="office.example", path="/keys")
    assert site.client.post("release", json=form).status_code == 403
    assert site.record("order-1") is not None
    assert site.record("order-2") is not None
    assert site.audited == []


def test_dashboard_is_read_only_unless_it_is_made_writable() -> None:
    site = Site(writable=False)
    site.claim("order-1")
    assert 'method="post"' not in site.client.get("").text
    assert 'method="post"' not in site.client.get("record?key=order-1").text
    assert "Release" not in site.client.get("record?key=order-1").text
    assert "Purge" not in site.client.get("").text
    assert "set-cookie" not in site.client.get("").headers
    for path in ("release", "forget", "purge"):
        assert site.client.get(path, params={"key": "order-1"}).status_code == 404
        assert site.client.post(path, data={"key": "order-1"}).status_code == 404
    assert site.record("order-1") is not None


def test_purge_deletes_expired_records_and_is_audited(tmp_path: Any) -> None:
    clock = [0.0]
    store = SQLiteStore(tmp_path / "records.db", clock=lambda: clock[0], synchronous="OFF")
    audited: list[AuditEvent] = []
    client = TestClient(dashboard(store, writable=True, audit=audited.append))
    for number in range(3):
        asyncio.run(
            store.acquire(
                storage_key("", f"order-{number}"),
                fingerprint=Fingerprint(b"f"),
                owner=Owner(b"o" * 16),
                lease=1.0,
                retention=1.0,
            )
        )
    clock[0] = 60.0
    token = re.search(r'name="token" value="(\w+)"', client.get("/purge").text)
    assert token
    assert client.post("/purge", data={"token": token[1]}).status_code == 200
    assert [(event.action, event.count) for event in audited] == [("purge", 3)]
    asyncio.run(store.aclose())


@pytest.mark.parametrize(
    "path",
    [
        "",
        "record?key=order-1",
        "record?key=gone",
        "release?key=order-1",
        "totals",
        "totals?count=all",
        "rates",
        "style.css",
        "nowhere",
    ],
)
def test_every_response_forbids_caching_scripts_and_foreign_content(path: str) -> None:
    site = Site()
    site.claim("order-1")
    answer = site.client.get(path)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script" not in answer.text
    assert " style=" not in answer.text


@pytest.mark.parametrize(
    "key", ["<script>alert(1)</script>", "k\x1b[2J", "k\udcff", 'a"b', "ключ", "a b%2Fc&d=e"]
)
def test_key_with_odd_characters_is_shown_as_text_and_can_be_released(key: str) -> None:
    site = Site()
    site.claim(key)
    page = site.client.get("").text
    assert "<script" not in page
    found = re.search(r'<td class="key"><a href="/keys/(record\?[^"]+)"', page)
    assert found
    path = found[1].replace("&amp;", "&")
    assert site.client.get(path).status_code == 200
    form = site.form(path.replace("record?", "release?"), "release")
    assert site.client.post("release", data=form).status_code == 200
    assert site.record(key) is None


class CountingStore(MemoryStore):
    """Counts the pages that were read, and their records."""

    records_read = scans = 0

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        page = await super().scan(limit=limit, cursor=cursor)
        self.records_read += len(page.records)
        self.scans += 1
        return page


def test_list_reads_a_bounded_part_of_the_store_per_page() -> None:
    site = Site()
    store = CountingStore(max_records=10_000)
    client = TestClient(dashboard(store))
    site.store = store
    for number in range(5_000):
        site.claim(f"order-{number:04}", tenant="bob" if number < 4_990 else "zoe")
    assert client.get("/").text.count('class="key"') == 50
    assert store.records_read == 50
    path, pages, found = "/?tenant=zoe", 0, 0
    while True:
        store.records_read = 0
        text = client.get(path).text
        assert store.records_read <= 2_000
        pages, found = pages + 1, found + text.count('class="key"')
        next_page = re.search(r'<a href="([^"]*cursor=[^"]*)">Go on', text)
        if next_page is None:
            break
        path = next_page[1].replace("&amp;", "&")
    assert (pages, found) == (3, 10)


def test_counts_are_per_minute_and_drop_the_oldest_minute() -> None:
    now = [0.0]
    counts = Counts(minutes=3, clock=lambda: now[0])
    for attempt in (1, 1, 2):
        counts(Claimed(operation="o", key_id="k", attempt=attempt, waited=0.0))
    now[0] = 60.0
    counts(Replayed(operation="o", key_id="k", age=1.0, waited=0.0))
    counts(Refused(operation="o", key_id="k", problem="in-progress", status=409))
    counts(Refused(operation="o", key_id=None, problem="missing-key", status=400))
    counts(ClaimLost(operation="o", key_id="k", attempt=1))
    assert counts.per_minute("misses") == [0, 2, 0]
    assert counts.per_minute("takeovers") == [0, 1, 0]
    assert counts.per_minute("hits") == [0, 0, 1]
    assert counts.per_minute("conflicts") == [0, 0, 1]
    assert counts.per_minute("lost claims") == [0, 0, 1]
    now[0] = 200.0
    assert counts.per_minute("misses") == [0, 0, 0]
    page = TestClient(dashboard(MemoryStore(), counts=counts)).get("/rates").text
    assert "No process wrote counts into this store" in page
    assert "In this process" in page
    now[0] = 61.0
    page = TestClient(dashboard(MemoryStore(), counts=counts)).get("/rates").text
    row = '<th scope="row">hits</th><td class="number">1</td><td class="number">0.33</td><td class="number">1</td>'
    assert row in page


def test_unavailable_store_gives_503() -> None:
    class Down(MemoryStore):
        async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
            raise StoreUnavailable("connection refused")

    answer = TestClient(dashboard(Down())).get("/")
    assert answer.status_code == 503
    assert "connection refused" in answer.text


def test_store_that_cannot_be_listed_is_refused_at_set_up() -> None:
    with pytest.raises(TypeError, match="cannot list"):
        dashboard(object())  # type: ignore[arg-type]


def test_confirmation_page_states_the_consequences_and_changes_nothing() -> None:
    site = Site()
    site.claim("order-1")
    page = site.client.get("release?key=order-1").text
    assert "<h1>Release order-1?</h1>" in page
    assert "there may be two effects" in page
    assert "The audit will say that carol did this." in page
    assert site.record("order-1") is not None
    assert site.audited == []
    site.complete("order-2")
    assert "that answer is lost" in site.client.get("forget?key=order-2").text
    assert site.client.get("release?key=order-2").status_code == 409
    assert site.client.get("forget?key=order-1").status_code == 409
    assert site.client.get("release?key=gone").status_code == 409


def shown_totals(page: str) -> dict[str, str]:
    return dict(re.findall(r'<th scope="row">(\w+)</th><td class="number">([^<]*)', page))


def test_totals_are_counted_only_on_a_same_origin_request() -> None:
    store = CountingStore()
    client = TestClient(dashboard(store))
    assert "Count all records" in client.get("/totals").text
    elsewhere = client.get("/totals?count=all", headers={"Sec-Fetch-Site": "cross-site"})
    assert "Count all records" in elsewhere.text
    assert store.scans == 0
    assert "Result" in client.get("/totals?count=all", headers={"Sec-Fetch-Site": "same-origin"}).text
    assert store.scans == 1


def test_long_count_reports_progress_and_stops_at_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    for number in range(5):
        site.complete(f"order-{number}")
    for name, value in {"STEP": 1, "TOLD_EVERY": -1.0}.items():
        monkeypatch.setattr(f"idempotency.dashboard.totals.{name}", value)
    page = site.client.get("totals?count=all").text
    assert re.findall(r"<li>([^<]*)", page) == [f"at least {n}: {n} completed" for n in range(1, 6)]
    assert shown_totals(page)["all"] == "5"
    monkeypatch.setattr("idempotency.dashboard.totals.LONGEST", -1.0)
    page = site.client.get("totals?count=all").text
    assert "there are more records" in page
    assert shown_totals(page)["all"] == "at least 1"


def test_count_shows_partial_totals_and_the_error_if_the_store_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(MemoryStore):
        async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
            if cursor is not None:
                raise StoreUnavailable("connection refused")
            return await super().scan(limit=1)

    site = Site()
    store = site.store = Failing()
    for number in range(3):
        site.complete(f"order-{number}")
    page = TestClient(dashboard(store)).get("/totals?count=all").text
    assert "the store did not answer: connection refused" in page
    assert shown_totals(page)["completed"] == "at least 1"
    assert page.endswith("</html>")


def test_second_count_gets_429_until_the_first_ends_or_is_cancelled() -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
            started.set()
            await go_on.wait()
            return await super().scan(limit=limit, cursor=cursor)

    async def counts() -> tuple[int, int]:
        app = dashboard(Slow())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://office.example") as client:
            first = asyncio.create_task(client.get("/totals?count=all"))
            await started.wait()
            second = await client.get("/totals?count=all")
            first.cancel()
            await asyncio.wait([first])
            go_on.set()
            third = await client.get("/totals?count=all")
            return second.status_code, third.status_code

    assert asyncio.run(counts()) == (429, 200)
