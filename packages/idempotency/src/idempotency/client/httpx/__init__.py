"""
Idempotent calls with httpx and httpx2: transports that send each call under one key until it is answered.

    client = httpx.Client(transport=IdempotencyTransport(httpx.HTTPTransport()))

Both libraries have the same interface, so the same two classes serve both; the request shows which one it is.
"""

from __future__ import annotations

from idempotency.client.httpx.async_transport import AsyncIdempotencyTransport
from idempotency.client.httpx.sync_transport import IdempotencyTransport
from idempotency.client.keys import quote_key, uuid4_key
from idempotency.client.retry import Retry

__all__ = ["AsyncIdempotencyTransport", "IdempotencyTransport", "Retry", "quote_key", "uuid4_key"]
