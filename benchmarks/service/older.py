"""
A service of the older shape, to measure the present one against: FastAPI, a synchronous Redis client in a middleware
that looks first and stores afterwards, indicators in pandas, and a scikit-learn forest asked once for each asset.

Written for the comparison; it has the older one's costs and none of its code.

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

logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
log = logging.getLogger(__name__)

API_KEY = os.environ.get("API_KEY", "k" * 32)
FEATURES = 11

cache = redis.Redis(port=int(os.environ["REDIS_PORT"]), decode_responses=True)
_random = np.random.default_rng(0)
forest = RandomForestClassifier(100, random_state=0).fit(
    _random.normal(size=(3000, FEATURES)), _random.integers(0, 3, 3000)
)


class Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Candle(Wire):
    symbol: str
    timestamp: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float


class Body(Wire):
    request_id: str
    agent_id: str
    portfolio: dict[str, Any]
    candles: list[Candle]
    instructions: str = ""


def key_checked(x_api_key: str = Header("")) -> None:
    if x_api_key != API_KEY:
        raise HTTPException(401)


class LookFirst(BaseHTTPMiddleware):
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
app.add_middleware(LookFirst)
app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/empty")
async def empty(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@app.post("/predict", dependencies=[Depends(key_checked)])
async def predict(body: Body) -> dict[str, Any]:
    frame = pd.DataFrame([candle.model_dump() for candle in body.candles])
    signals = []
    for asset in ("BTC", "ETH"):
        rows = indicators(frame[frame["symbol"] == asset].sort_values("timestamp"))
        chances = forest.predict_proba(rows.iloc[[-1]].to_numpy())[0]
        signals.append({"feature": asset, "value": float(chances.max())})
    return {
        "requestId": body.request_id,
        "agentId": body.agent_id,
        "createdAt": datetime.now(UTC).isoformat(),
        "orders": [],
        "signals": signals,
        "reasoning": "",
    }


def indicators(candles: pd.DataFrame) -> pd.DataFrame:
    close, volume = candles["close"], candles["volume"]
    moves = close.diff()
    up = moves.clip(lower=0).ewm(alpha=1 / 14, adjust=False).mean()
    down = (-moves.clip(upper=0)).ewm(alpha=1 / 14, adjust=False).mean()
    macd = close.ewm(span=12, adjust=False).mean() - close.ewm(span=26, adjust=False).mean()
    signal = macd.ewm(span=9, adjust=False).mean()
    returns = close.pct_change()
    return pd.DataFrame(
        {
            "sma_7": close.rolling(7).mean(),
            "sma_21": close.rolling(21).mean(),
            "rsi_14": 100 - 100 / (1 + up / down),
            "macd": macd,
            "macd_signal": signal,
            "macd_diff": macd - signal,
            "bb_width": 4 * close.rolling(20).std(ddof=0) / close,
            "returns_1": returns,
            "returns_7": close.pct_change(7),
            "volatility_7": returns.rolling(7).std(),
            "volume_ratio": volume / volume.rolling(7).mean(),
        }
    ).dropna()
