"""
Fixtures of the service's tests: a clean environment, bodies of the .NET client, and the service in this process.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from idempotency.stores.memory import MemoryStore
from ml_api.app import create_app
from ml_api.settings import Settings
from ml_api.stores.backend import Backend

API_KEY = "the-api-key-of-the-tests"
NEWEST = datetime(2026, 2, 20, 14, 0, tzinfo=UTC)


def memory_backend() -> Backend:
    return Backend("sqlite", MemoryStore())


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio: uvicorn knows no other loop."""
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remove the settings of the machine and of any `.env` file."""
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
    A client of the whole application in this process: `service(wait=0)`.

    Settings are keyword arguments; the store is in memory unless *backend* is given.
    """

    def of(
        *, backend: Backend | None = None, base: str = "http://service", **settings: object
    ) -> httpx.AsyncClient:
        chosen = Settings.model_validate({"api_key": API_KEY} | settings)
        app = create_app(chosen, backend=backend or memory_backend())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=base)

    return of


@pytest.fixture
def make_body() -> Callable[..., bytes]:
    """
    Bodies as the .NET client writes them: compact, newest candle first, assets mixed, decimals as JSON
    numbers with their scale, non-ASCII escaped. Prices are a random walk of a fixed seed, unless *closes*
    (oldest first) is given.
    """

    def body(
        *,
        count: int = 100,
        assets: Sequence[str] = ("BTC", "ETH"),
        closes: Mapping[str, Sequence[float]] | None = None,
        volumes: Sequence[float] | None = None,
        newest: datetime = datetime(2026, 2, 20, 14, tzinfo=UTC),
        total_value: str = "100000.00",
        cash: str = "52340.55",
        positions: str = '{"symbol":"BTC","quantity":0.35000000,"averagePrice":64210.12500000}',
        agent: str = "44444444-0000-4444-0000-444444444444",
        request: str = "6f1c2f0e-7c55-4a52-9a3e-3c1a6ac0b001",
        instructions: str = "prudence \u2014 co\u00fbt > 0",
    ) -> bytes:
        walk = random.Random(7)
        columns: dict[str, Sequence[float]] = {}
        for asset, start in zip(assets, itertools.cycle((64000.0, 3100.0)), strict=False):
            steps = itertools.accumulate(
                (walk.gauss(0, 0.006) for _ in range(count)), initial=math.log(start)
            )
            columns[asset] = (closes or {}).get(asset) or [math.exp(step) for step in steps][1:]
        lines = []
        for age in range(max(map(len, columns.values()), default=0)):
            moment = (newest - age * timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M:%S+00:00")
            for asset, column in columns.items():
                if age < len(column):
                    close = f"{column[-1 - age]:.8f}"
                    volume = f"{volumes[-1 - age] if volumes else walk.uniform(500, 1500):.8f}"
                    lines.append(
                        f'{{"symbol":"{asset}","timestamp":"{moment}","open":{close},"high":{close},'
                        f'"low":{close},"close":{close},"volume":{volume}}}'
                    )
        return (
            f'{{"schemaVersion":"1.0","requestId":"{request}","agentId":"{agent}",'
            f'"portfolio":{{"cash":{cash},"totalValue":{total_value},"positions":[{positions}]}},'
            f'"candles":[{",".join(lines)}],"instructions":{json.dumps(instructions)}}}'
        ).encode()

    return body
