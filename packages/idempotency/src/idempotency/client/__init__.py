"""The client's half: transports that send one logical call until it is answered, under one key."""

from __future__ import annotations

from idempotency.client.call import quote_key, uuid4_key
from idempotency.client.httpx import AsyncIdempotencyTransport, IdempotencyTransport
from idempotency.client.retry import Retry

__all__ = ["AsyncIdempotencyTransport", "IdempotencyTransport", "Retry", "quote_key", "uuid4_key"]
