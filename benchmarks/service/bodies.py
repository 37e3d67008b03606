"""
The body that the client sends: 100 candles of each of two assets, newest first, and a new requestId each time.

Bodies with the same `market` have the same candles, like those of agents that ask at the same moment.
"""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta
from functools import cache

numbers = itertools.count()


def body(market: int = 0) -> bytes:
    return (
        f'{{"schemaVersion":"1.0","requestId":"request-{next(numbers):08}","agentId":"bench",'
        '"portfolio":{"cash":50000.00,"totalValue":100000.00,"positions":[]},'
        f'"candles":[{candles(market)}],"instructions":""}}'
    ).encode()


@cache
def candles(market: int) -> str:
    newest = datetime(2026, 2, 20, 14, 0, tzinfo=UTC)
    written = []
    for age in range(100):
        moment = (newest - timedelta(hours=age)).isoformat()
        for symbol, price in (("BTC", 66000.0), ("ETH", 2900.0)):
            close = (price + market) * (1 + 0.02 * math.sin(age / 3) - 0.0005 * age)
            prices = ",".join(f'"{name}":{close:.8f}' for name in ("open", "high", "low", "close"))
            written.append(
                f'{{"symbol":"{symbol}","timestamp":"{moment}",{prices},"volume":{1000 + age}.50000000}}'
            )
    return ",".join(written)
