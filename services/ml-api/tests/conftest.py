"""
What the service's tests share: a clean environment, bodies as the .NET client sends them, the service in-process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from idempotency.stores.memory import MemoryStore
from ml_api.app import create_app
from ml_api.settings import Settings
from ml_api.stores import Backend

API_KEY = "the-api-key-of-the-tests"
NEWEST = datetime(2026, 2, 20, 14, 0, tzinfo=UTC)


def memory_backend() -> Backend:
    store = MemoryStore()
    return Backend("sqlite", store, None, store.aclose)


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio: uvicorn knows no other loop."""
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the machine or of a `.env` nearby reaches a test."""
    for name in os.environ:
        if name.upper().startswith("ML_SERVICE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def headers() -> Callable[..., dict[str, str]]:
    """The headers of one request: `headers("key")` with an Idempotency-Key, `headers()` without."""

    def of(key: str | None = None, **more: str) -> dict[str, str]:
        keyed = {"Idempotency-Key": key} if key is not None else {}
        return {"X-API-Key": API_KEY, "Content-Type": "application/json"} | keyed | more

    return of


@pytest.fixture
def body() -> Callable[..., bytes]:
    """Bodies as the .NET client writes them: newest candle first, assets mixed, decimals with their scale."""
    drawn = iter(range(10_000))

    def of(
        agent: str = "agent-1",
        *,
        newest: datetime = NEWEST,
        count: int = 40,
        cash: str = "5000.00",
        text: str = "",
    ) -> bytes:
        candles = []
        for age in range(count):
            moment = (newest - timedelta(hours=age)).strftime("%Y-%m-%dT%H:%M:%S+00:00")
            for symbol, price in (("BTC", 66000.0), ("ETH", 2900.0)):
                close = price * (1 + 0.02 * math.sin(age / 3) - 0.001 * age)
                candles.append(
                    f'{{"symbol":"{symbol}","timestamp":"{moment}","open":{close:.8f},"high":{close:.8f},'
                    f'"low":{close:.8f},"close":{close:.8f},"volume":{1000 + age}.50000000}}'
                )
        return (
            f'{{"schemaVersion":"1.0","requestId":"00000000-0000-4000-8000-{next(drawn):012}","agentId":"{agent}",'
            f'"portfolio":{{"cash":{cash},"totalValue":100000.00,"positions":[]}},'
            f'"candles":[{",".join(candles)}],"instructions":"{text}"}}'
        ).encode()

    return of


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Callable[..., httpx.AsyncClient]:
    """
    The whole application in this process, spoken to through HTTP's shapes: `service(wait=0)`.

    Settings are given by name; the store is one in memory unless *backend* brings another.
    """

    def of(
        *, backend: Backend | None = None, base: str = "http://service", **settings: object
    ) -> httpx.AsyncClient:
        chosen = Settings.model_validate({"api_key": API_KEY} | settings)
        app = create_app(chosen, backend=backend or memory_backend())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=base)

    return of
