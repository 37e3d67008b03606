"""`idempotency dashboard` in a real browser: finding, showing and releasing keys, layout, and no foreign request."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from idempotency import Acquired, Fingerprint, Owner, Response, storage_key
from idempotency._core.outcome import encode_response
from idempotency.counts import StoreCounts
from idempotency.events import Replayed
from idempotency.stores.sqlite import SyncSQLiteStore

ANSWER = encode_response(Response(201, [(b"content-type", b"application/json")], b'{"charge": 1}'))
PATIENCE_MS = 60_000

chromium = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.real_time("a server and a browser are started"),
    pytest.mark.skipif(
        chromium is None and not os.environ.get("CI"),
        reason="no Chromium on the PATH: the dashboard was not looked at in a browser",
    ),
]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A SQLite store with 20,001 completed records, and one whose run was abandoned."""
    path = tmp_path / "records.db"
    with closing(SyncSQLiteStore(path, synchronous="OFF")) as store:
        for key, lease in (("order-1", 0.001), ("done", 30.0)):
            reply = store.acquire(
                storage_key("alice", key),
                fingerprint=Fingerprint(b"f" * 32),
                owner=Owner(b"o" * 16),
                lease=lease,
                retention=3600.0,
            )
            assert isinstance(reply, Acquired)
        store.complete(reply.claim, ANSWER, retention=3600.0)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
            "INSERT INTO idempotency_record SELECT 'bob:order-' || n.i, version, fingerprint, owner, attempt, fence, "
            "boot, lease_until, retention, expires_at, completed_at, outcome FROM idempotency_record, n "
            "WHERE key = 'alice:done'"
        )
    return path


@contextmanager
def served(database: Path, *options: str) -> Iterator[str]:
    """The address that the command prints."""
    command = Path(sysconfig.get_path("scripts")) / "idempotency"
    process = subprocess.Popen(
        [command, "dashboard", "--store", f"sqlite:///{database}", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate()[1]
        yield line.split()[0]
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def browsed(**view: Any) -> Iterator[tuple[Page, list[str]]]:
    """A page, without JavaScript unless *view* says otherwise, and its console messages and foreign requests."""
    assert chromium is not None, "no Chromium on the PATH; CI installs one"
    complaints: list[str] = []
    settings = {"viewport": {"width": 375, "height": 800}, "java_script_enabled": False} | view
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(**settings)
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: complaints.append(message.text))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith("http://127.0.0.1:") else complaints.append(request.url)
            ),
        )
        yield page, complaints
        browser.close()


def test_keys_can_be_found_shown_and_released_without_javascript(
    database: Path,
) -> None:
    with served(database, "--writable") as address, browsed() as (page, complaints):
        page.goto(address)
        assert page.locator("td.key").count() == 50
        page.get_by_role("link", name="Go on").click()
        page.get_by_label("Tenant").first.fill("alice")
        page.get_by_label("Key", exact=True).fill("order-1")
        page.get_by_role("button", name="Find this key").click()
        page.get_by_role("heading", name="alice:order-1").wait_for()
        page.get_by_role("link", name="Release this key").click()
        page.get_by_role("heading", name="What will happen").wait_for()
        with closing(SyncSQLiteStore(database)) as store:
            assert store.get(storage_key("alice", "order-1")) is not None, (
                "the confirmation page changes nothing"
            )
        page.get_by_role("button", name="Release this key").click()
        page.get_by_text(re.compile("Done: release, 1 record")).wait_for()
        with closing(SyncSQLiteStore(database)) as store:
            assert store.get(storage_key("alice", "order-1")) is None
        page.goto(f"{address}record?key=alice:done")
        assert "charge" not in page.content()
        page.get_by_role("link", name="Show the answer").click()
        page.get_by_text('{"charge": 1}').wait_for()
        page.get_by_role("link", name="Totals").click()
        page.get_by_role("link", name="Count all records").click()
        page.get_by_role("row", name="all 20,001").wait_for()
        assert complaints == []


def test_key_can_be_found_and_its_release_cancelled_by_keyboard(database: Path) -> None:
    with served(database, "--writable") as address, browsed(java_script_enabled=True) as (page, _):

        def tab_to(name: str) -> None:
            for _ in range(30):
                page.keyboard.press("Tab")
                focused = "document.activeElement"
                if name in page.evaluate(f"{focused}.labels?.[0]?.innerText ?? {focused}.innerText ?? ''"):
                    return
            raise AssertionError(f"no way to {name!r} by the Tab key")

        page.goto(address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "To the content"
        tab_to("Tenant")
        page.keyboard.type("alice")
        tab_to("Key")
        page.keyboard.type("order-1")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="alice:order-1").wait_for()
        tab_to("Release this key")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="What will happen").wait_for()
        tab_to("Cancel")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="alice:order-1", exact=True).wait_for()
        with closing(SyncSQLiteStore(database)) as store:
            assert store.get(storage_key("alice", "order-1")) is not None


PAGES = (
    "",
    "?state=abandoned",
    "record?key=alice:done&show=outcome",
    "record?key=alice:order-1",
    "release?key=alice:order-1",
    "forget?key=alice:done",
    "purge",
    "totals",
    "totals?count=all",
    "rates",
    "record?key=nowhere",
)
"""Every kind of page."""


@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1366, "light")])
def test_every_page_fits_the_window_and_has_no_axe_violation(database: Path, width: int, scheme: str) -> None:
    with closing(SyncSQLiteStore(database)) as store:
        counts = StoreCounts(store, clock=lambda: time.time() - 60.0)
        for _ in range(3):
            counts(Replayed(operation="POST /charges", key_id="0bafe22156d2", age=1.0, waited=0.0))
        counts.close()
    pictures = os.environ.get("DASHBOARD_PICTURES")  # a folder for screenshots, to inspect them
    view = {"java_script_enabled": True, "viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with served(database, "--writable") as address, browsed(**view) as (page, _):
        found = []
        for path in PAGES:
            page.goto(address + path)
            overhang = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            if overhang > 0:
                found.append(f"{path}: {overhang} px wider than the window")
            for violation in Axe().run(page).response["violations"]:
                nodes = ", ".join(str(node["target"][0]) for node in violation["nodes"][:3])
                found.append(f"{path}: {violation['impact']}: {violation['help']} at {nodes}")
            if pictures:
                page.screenshot(
                    path=Path(pictures, f"{quote(path, safe='') or 'index'}-{width}-{scheme}.png")
                )
        assert found == []


def test_read_only_dashboard_offers_no_change_and_needs_its_secret_address(database: Path) -> None:
    with served(database) as address, browsed() as (page, complaints):
        page.goto(f"{address}record?key=alice:order-1")
        page.get_by_text("abandoned").first.wait_for()
        assert page.get_by_text("Release this key").count() == 0
        assert page.get_by_role("link", name="Purge").count() == 0
        assert page.goto(address.rsplit("/", 2)[0] + "/") is not None
        assert page.get_by_text("alice").count() == 0, "the dashboard needs the random part of its address"
    assert [text for text in complaints if "404" not in text] == []
