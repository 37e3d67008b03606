"""
The floor for `load.py --floor`: the same decision and the same two calls of the store, in a bare ASGI application.

It has none of the service's layers: no API key, limits, fingerprint, lease renewal, log lines, metrics of requests or
errors. uvicorn's own protocol serves it.

    REDIS_PORT=6379 ML_SERVICE_API_KEY=... python -m uvicorn --app-dir benchmarks/service floor:app
"""

from __future__ import annotations

import gc
import os
from typing import Any

from idempotency import Acquired, Completed, Fingerprint, Owner, StorageKey
from idempotency.stores.url import open_store
from ml_api.observability.metrics import Metrics
from ml_api.predict.service import PredictionService
from ml_api.serving.registry import load_models
from ml_api.settings import load_settings

decide = PredictionService(load_models(load_settings()).trading, Metrics()).decide
store = open_store(f"redis://127.0.0.1:{os.environ['REDIS_PORT']}?prefix=floor:")
same_for_all = Fingerprint(bytes(32))
gc.freeze()  # as the service does
gc.set_threshold(10_000, 20, 20)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError("only HTTP is served")  # so uvicorn starts without the lifespan protocol
    answer = await answer_to(scope, receive) if scope["path"] == "/predict" else b"{}"
    length = b"%d" % len(answer)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": answer})


async def answer_to(scope: Any, receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    key = StorageKey(dict(scope["headers"])[b"idempotency-key"].decode())
    reply = await store.acquire(
        key, fingerprint=same_for_all, owner=Owner(os.urandom(16)), lease=30.0, retention=3600.0
    )
    if isinstance(reply, Completed):
        return reply.outcome
    assert isinstance(reply, Acquired), "the benchmark repeats a request only once it is answered"
    answer = decide(body)
    await store.complete(reply.claim, answer, retention=3600.0)
    return answer
