"""
Idempotency for Django: a middleware under WSGI and ASGI, a decorator for views, and a mixin for Django REST framework.

    MIDDLEWARE = [
        ...,
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "idempotency.django.IdempotencyMiddleware",
    ]
    IDEMPOTENCY = {"STORE": "redis://localhost:6379/0"}

docs/django.md lists every setting. The mixin is `idempotency.django.rest_framework.IdempotentAPIView`.
"""

from __future__ import annotations

from idempotency._runtime.extras import missing

try:
    import django  # noqa: F401
except ModuleNotFoundError as _error:
    raise missing("django", "idempotency.django", _error) from _error

from idempotency.django.middleware import IdempotencyMiddleware
from idempotency.django.settings import by_user
from idempotency.django.views import protect

__all__ = ["IdempotencyMiddleware", "by_user", "protect"]
