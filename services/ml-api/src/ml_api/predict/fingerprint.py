"""
Computes the fingerprint of a decision request: equal fingerprints mean the same decision.

The .NET client's key is `{agentId}-{newest candle minute}`, while requestId is fresh on every call and the
portfolio moves between two cycles that share a key. So the fingerprint is a projection of the body on what
the key stands for: the agent, the newest candle's minute, and the caller. Equal means replay; different
means somebody else's decision.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Literal

from idempotency import Fingerprint, RequestView
from ml_api.http.json_fingerprint import json_fingerprint
from ml_api.predict.seen_candles import SeenCandles

__all__ = ["decision_fingerprint", "fingerprint_of"]

_projection = SeenCandles().projection


def fingerprint_of(kind: Literal["decision", "body"]) -> Callable[[RequestView], Fingerprint]:
    """The function behind a value of the `fingerprint` setting."""
    return decision_fingerprint if kind == "decision" else json_fingerprint()


def decision_fingerprint(view: RequestView) -> Fingerprint:
    """
    The projection of a body, as a digest.

    Raises:
        ValueError: Not a body of this contract; the engine then takes the exact bytes, and the route
            refuses them.
    """
    agent, minute = _projection(view.body)
    parts = agent.encode(), str(minute).encode(), view.tenant.encode()
    # Each with its length: no two different triples run together.
    return Fingerprint(sha256(b"".join([b"%d:%b" % (len(part), part) for part in parts])).digest())
