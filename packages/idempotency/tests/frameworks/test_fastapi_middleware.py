"""CORS, compression and commits in middleware that is added before `install` or after it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware

from idempotency.fastapi import Idempotent, install
from idempotency.stores.memory import MemoryStore

KEY = {"Idempotency-Key": "k"}


class Shop:
    """An application with `install` before or after other middleware."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.rows = 0
        once = Idempotent(principal=lambda: "alice")

        @self.app.post("/charges")
        @once.protect
        def charge(amount: int = 5) -> str:
            return "charged" * 100

    def post(self, amount: int = 5, **headers: str) -> Any:
        client = TestClient(self.app, raise_server_exceptions=False)
        return client.post(f"/charges?amount={amount}", headers=KEY | headers)

    def add_cors(self) -> None:
        self.app.add_middleware(CORSMiddleware, allow_origins=["https://a", "https://b"])


@pytest.mark.parametrize("outside", [True, False])
def test_each_origin_gets_its_own_cors_headers_on_replays_and_refusals(outside: bool) -> None:
    shop = Shop()
    if outside:
        install(shop.app, store=MemoryStore())
        shop.add_cors()
    else:
        shop.add_cors()
        install(shop.app, store=MemoryStore())
    shop.post(Origin="https://a")
    again, refused = shop.post(Origin="https://b"), shop.post(amount=6, Origin="https://b")
    assert again.headers["Idempotency-Replayed"] == "true"
    for answer, status in ((again, 200), (refused, 422)):
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, "https://b")


@pytest.mark.parametrize("outside", [True, False])
def test_compression_is_warned_of_only_where_it_was_added_before_install(
    outside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()
    if outside:
        install(shop.app, store=MemoryStore())
        shop.app.add_middleware(GZipMiddleware)
    else:
        shop.app.add_middleware(GZipMiddleware)
        install(shop.app, store=MemoryStore())
    for _ in range(2):
        shop.post()
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == (0 if outside else 1)
    assert all("add it after install(app)" in message for message in warned)


def test_a_commit_that_fails_in_a_middleware_added_before_install_frees_the_key() -> None:
    shop, failing = Shop(), [True]

    async def commit(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        if failing:
            failing.clear()
            raise LookupError
        shop.rows += 1
        return response

    shop.app.add_middleware(BaseHTTPMiddleware, dispatch=commit)
    install(shop.app, store=MemoryStore())
    assert shop.post().status_code == 500
    second, third = shop.post(), shop.post()
    assert (second.status_code, third.headers["Idempotency-Replayed"]) == (200, "true")
    assert "Idempotency-Replayed" not in second.headers
