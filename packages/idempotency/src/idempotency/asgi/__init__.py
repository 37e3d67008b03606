"""Idempotency for any ASGI application: the middleware, `LateClaim` with `claim`, and `tenant` callables for both."""

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
