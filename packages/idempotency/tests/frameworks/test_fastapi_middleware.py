"""CORS and compression beside `install`: outside they answer each client, inside they are warned of."""

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


def test_cors_outside_answers_each_origin_and_refusals_too(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    install(shop.app, store=MemoryStore())
    shop.add_cors()
    shop.app.add_middleware(GZipMiddleware, minimum_size=10)
    shop.post(Origin="https://a")
    again, refused = shop.post(Origin="https://b"), shop.post(amount=6, Origin="https://b")
    assert again.headers["Idempotency-Replayed"] == "true"
    for answer, status in ((again, 200), (refused, 422)):
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, "https://b")
    assert [
        told for told in caplog.records if told.name == "idempotency" and told.levelno > logging.INFO
    ] == []


@pytest.mark.parametrize("kind", [CORSMiddleware, GZipMiddleware])
def test_what_is_added_before_install_is_warned_of(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    shop.app.add_middleware(kind)
    install(shop.app, store=MemoryStore())
    for _ in range(2):
        shop.post()
    [warned] = [told.getMessage() for told in caplog.records if told.levelno == logging.WARNING]
    assert warned.startswith(f"{kind.__name__} is inside")
    assert "after install(app)" in warned


def test_a_commit_of_a_middleware_that_was_added_before_install_frees_the_key_if_it_fails() -> None:
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
