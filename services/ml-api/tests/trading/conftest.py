"""What the tests of contract, trading and training share: bodies as the real client writes them."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest


@pytest.fixture
def make_body() -> Callable[..., bytes]:
    """
    Bodies as the .NET client writes them: compact, newest candle first, assets mixed, decimals as JSON
    numbers with their scale, non-ASCII escaped. Prices walk from a fixed seed, unless *closes* (oldest
    first) says.
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
