"""The ASGI middleware: reads the request, asks the engine, runs the application once, records, then sends."""

from __future__ import annotations

from idempotency.asgi.late_claim import LateClaim, claim
from idempotency.asgi.middleware import EXPOSED_HEADERS, IdempotencyMiddleware
from idempotency.asgi.tenants import CredentialTenantWarning, by_header, by_user, one_tenant

__all__ = [
    "EXPOSED_HEADERS",
    "CredentialTenantWarning",
    "IdempotencyMiddleware",
    "LateClaim",
    "by_header",
    "by_user",
    "claim",
    "one_tenant",
]
