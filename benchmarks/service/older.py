"""
An imitation of the older service, for comparison: FastAPI; a middleware with a synchronous Redis client, which looks up
the key first and stores the answer afterwards; indicators in pandas; and a scikit-learn forest, called once per asset.

It was written for the comparison, with the older service's costs and none of its code. RSI, MACD and Bollinger bands
come from `ta`: its averages start as the contract requires, and its RSI is 100 if there was no loss.

    REDIS_PORT=6379 python -m uvicorn --app-dir benchmarks/service older:app
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import redis
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from sklearn.ensemble import RandomForestClassifier
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from ta.momentum import RSIIndicator
from ta.trend import MACD, SMAIndicator
from ta.volatility import BollingerBands

logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
log = logging.getLogger(__name__)

API_KEY = os.environ.get("API_KEY", "the-api-key-of-the-benchmark")
FEATURES = [
    *("sma_7", "sma_21", "rsi_14", "macd", "macd_signal", "macd_diff", "bb_width"),
    *("returns_1", "returns_7", "volatility_7", "volume_ratio"),
]

cache = redis.Redis(port=int(os.environ["REDIS_PORT"]), decode_responses=True)
_random = np.random.default_rng(0)
forest = RandomForestClassifier(100, random_state=0).fit(
    pd.DataFrame(_random.normal(size=(3000, len(FEATURES))), columns=FEATURES), _random.integers(0, 3, 3000)
)


class CamelModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Candle(CamelModel):
    symbol: str
    timestamp: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float


class Body(CamelModel):
    request_id: str
    agent_id: str
    portfolio: dict[str, Any]
    candles: list[Candle]
    instructions: str = ""


class Order(CamelModel):
    asset_symbol: str
    side: str
    quantity: float
    limit_price: float | None


class Signal(CamelModel):
    feature: str
    value: float
    rule: str
    fired: bool
    contribution: str


class Answer(CamelModel):
    schema_version: str = "1.0"
    model_version: str = "1.0.0"
    request_id: str
    agent_id: str
    created_at: datetime
    orders: list[Order]
    signals: list[Signal]
    reasoning: str


def check_api_key(x_api_key: str = Header("")) -> None:
    if x_api_key != API_KEY:
        raise HTTPException(401)


class CacheMiddleware(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return await call_next(request)
        if (kept := cache.get(f"older:{key}")) is not None:
            log.info("Cache HIT for key: %s", key)
            record = json.loads(kept)
            return Response(record["body"], record["status_code"], record["headers"])
        log.info("Cache MISS for key: %s", key)
        answer = await call_next(request)
        body = b"".join([chunk async for chunk in answer.body_iterator])
        record = {"status_code": answer.status_code, "headers": dict(answer.headers), "body": body.decode()}
        cache.set(f"older:{key}", json.dumps(record), ex=3600)
        log.info("Cache STORE for key: %s", key)
        return Response(body, answer.status_code, dict(answer.headers))


app = FastAPI()
app.add_middleware(CacheMiddleware)
app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/empty")
async def empty(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@app.post("/predict", dependencies=[Depends(check_api_key)])
async def predict(body: Body) -> Answer:
    frame = pd.DataFrame([candle.model_dump() for candle in body.candles])
    orders, signals, lines = [], [], []
    for asset in ("BTC", "ETH"):
        rows = indicators(frame[frame["symbol"] == asset].sort_values("timestamp"))
        newest = rows[FEATURES].iloc[[-1]]
        probabilities = forest.predict_proba(newest)[0]
        side, confidence = ("SELL", "HOLD", "BUY")[probabilities.argmax()], float(probabilities.max())
        signals += signals_of(newest.iloc[0])
        if side != "HOLD":
            stake = float(body.portfolio["totalValue"]) * 0.1 * min(confidence, 0.9)
            quantity = round(stake / float(rows["close"].iloc[-1]), 8)
            orders.append(Order(asset_symbol=asset, side=side, quantity=quantity, limit_price=None))
            lines.append(f"{asset}: {side} (confidence: {confidence:.0%})")
    return Answer(
        request_id=body.request_id,
        agent_id=body.agent_id,
        created_at=datetime.now(UTC),
        orders=orders,
        signals=signals,
        reasoning="; ".join(lines) or "No trading signals",
    )


def indicators(candles: pd.DataFrame) -> pd.DataFrame:
    close, volume = candles["close"], candles["volume"]
    macd, bands = MACD(close), BollingerBands(close, window=20, window_dev=2)
    returns = close.pct_change()
    return candles.assign(
        sma_7=SMAIndicator(close, window=7).sma_indicator(),
        sma_21=SMAIndicator(close, window=21, fillna=True).sma_indicator(),
        rsi_14=RSIIndicator(close, window=14).rsi(),
        macd=macd.macd().fillna(0.0),
        macd_signal=macd.macd_signal().fillna(0.0),
        macd_diff=macd.macd_diff().fillna(0.0),
        bb_width=(bands.bollinger_hband() - bands.bollinger_lband()) / close,
        returns_1=returns,
        returns_7=close.pct_change(7),
        volatility_7=returns.rolling(7).std(),
        volume_ratio=volume / volume.rolling(7).mean(),
    ).dropna()


RULES: tuple[tuple[str, str, float, str, str], ...] = (
    ("rsi_14", "<", 40, "<40 = oversold zone", "bullish"),
    ("rsi_14", ">", 60, ">60 = overbought zone", "bearish"),
    ("macd_diff", ">", 0, ">0 = bullish crossover", "bullish"),
    ("macd_diff", "<", 0, "<0 = bearish crossover", "bearish"),
    ("returns_7", ">", 0.02, ">2% = uptrend", "bullish"),
    ("returns_7", "<", -0.02, "<-2% = downtrend", "bearish"),
    ("bb_width", ">", 0.1, ">10% = high volatility", "neutral"),
    ("returns_1", ">", 0.005, ">0.5% = short-term momentum up", "bullish"),
    ("returns_1", "<", -0.005, "<-0.5% = short-term momentum down", "bearish"),
)


def signals_of(row: pd.Series) -> list[Signal]:
    found = []
    for feature, than, limit, rule, contribution in RULES:
        value = float(row[feature])
        fired = value < limit if than == "<" else value > limit
        found.append(
            Signal(feature=feature, value=round(value, 4), rule=rule, fired=fired, contribution=contribution)
        )
    return found
