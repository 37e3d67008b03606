"""
The client's half: transports for httpx and httpx2 that send one logical call until it is answered, under one key.

    client = httpx.Client(transport=IdempotencyTransport(httpx.HTTPTransport()))

Both libraries have the same shape, so one pair of classes serves them; which one it is shows in the request.
"""

from __future__ import annotations

from idempotency.client.httpx.async_transport import AsyncIdempotencyTransport
from idempotency.client.httpx.sync_transport import IdempotencyTransport
from idempotency.client.keys import quote_key, uuid4_key
from idempotency.client.retry import Retry

__all__ = ["AsyncIdempotencyTransport", "IdempotencyTransport", "Retry", "quote_key", "uuid4_key"]
