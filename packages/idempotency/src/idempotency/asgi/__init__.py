"""The ASGI middleware: read the request, let the engine decide, run the application once, record, then send."""

from __future__ import annotations

from idempotency.asgi.middleware import EXPOSED_HEADERS, IdempotencyMiddleware, by_header, one_tenant

__all__ = ["EXPOSED_HEADERS", "IdempotencyMiddleware", "by_header", "one_tenant"]
