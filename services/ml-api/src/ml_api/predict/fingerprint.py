"""
Computes the fingerprint of a decision request: equal fingerprints mean the same decision.

The .NET client's key is `{agentId}-{newest candle minute}`. requestId is new in every call, and the portfolio may
change between two calls with the same key. So the fingerprint covers only what the key stands for: the agent, the
newest candle's minute, and the caller. An equal fingerprint means a replay; another one means another decision.

`seen_candles` does the same as `contract.projection`, faster; `ML_API_IMPL=plain` switches it off.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Literal

from idempotency import Fingerprint, RequestView
from ml_api.http.json_fingerprint import json_fingerprint
from ml_api.predict.contract import projection
from ml_api.predict.seen_candles import SeenCandles
from ml_api.settings import plain_implementation

__all__ = ["decision_fingerprint", "fingerprint_of"]

_projection = projection if plain_implementation() else SeenCandles().projection


def fingerprint_of(kind: Literal["decision", "body"]) -> Callable[[RequestView], Fingerprint]:
    """Return the fingerprint function for a value of the setting `fingerprint`."""
    return decision_fingerprint if kind == "decision" else json_fingerprint()


def decision_fingerprint(view: RequestView) -> Fingerprint:
    """
    Return the digest of a body's projection.

    Raises:
        ValueError: The body is not valid. Then the engine uses the exact bytes, and the route refuses the request.
    """
    agent, minute = _projection(view.body)
    parts = agent.encode(), str(minute).encode(), view.tenant.encode()
    # Each part with its length, so that two different triples never give the same bytes.
    return Fingerprint(sha256(b"".join([b"%d:%b" % (len(part), part) for part in parts])).digest())
