"""GET /docs in a real browser: it renders, requests nothing from other origins, and "try it" decides and replays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-sync",
)
PREDICT = "#operations-Decisions-predict"

chromium = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(
    chromium is None and not os.environ.get("CI"),
    reason="no Chromium on the PATH: /docs was not tested in a browser",
)
def test_docs_page_renders_and_replays_a_request_without_other_origins(
    serve: Callable[..., Any],
) -> None:
    assert chromium is not None, "no Chromium on the PATH; CI installs one"
    service = serve()
    errors: list[str] = []
    other_origins: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        own = f"http://127.0.0.1:{service.port}/"
        page.on(
            "request", lambda r: None if r.url.startswith((own, "data:")) else other_origins.append(r.url)
        )

        page.goto(f"{own}docs")
        page.click(".btn.authorize")
        page.fill(".auth-container input", service.client.headers["x-api-key"])
        page.click(".auth-btn-wrapper .authorize")
        page.click(".btn-done")
        page.click(f"{PREDICT} .opblock-summary")
        page.fill(f'{PREDICT} input[placeholder="Idempotency-Key"]', "from-the-browser")
        replayed = []
        for _ in range(2):
            with page.expect_response(f"{own}predict") as answer:
                page.click(f"{PREDICT} .execute")
            assert answer.value.status == 200
            replayed.append(answer.value.headers.get("idempotency-replayed"))
        page.wait_for_selector(f"{PREDICT} .live-responses-table")
        browser.close()
    assert replayed == [None, "true"]
    assert errors == []
    assert other_origins == []
