"""
The client side: sends one logical call under one key until it is answered.

This module serves httpx and httpx2; `idempotency.client.requests` and `idempotency.client.aiohttp` serve those
libraries.
"""

from __future__ import annotations

from idempotency.client.httpx import AsyncIdempotencyTransport, IdempotencyTransport
from idempotency.client.keys import quote_key, uuid4_key
from idempotency.client.retry import Answer, Retry

__all__ = ["Answer", "AsyncIdempotencyTransport", "IdempotencyTransport", "Retry", "quote_key", "uuid4_key"]
