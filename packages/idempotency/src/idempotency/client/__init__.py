"""
The client's half: one logical call, sent until it is answered, under one key.

For httpx and httpx2 here; for requests and aiohttp in `idempotency.client.requests` and `idempotency.client.aiohttp`.
"""

from __future__ import annotations

from idempotency.client.httpx import AsyncIdempotencyTransport, IdempotencyTransport
from idempotency.client.keys import quote_key, uuid4_key
from idempotency.client.retry import Answer, Retry

__all__ = ["Answer", "AsyncIdempotencyTransport", "IdempotencyTransport", "Retry", "quote_key", "uuid4_key"]
