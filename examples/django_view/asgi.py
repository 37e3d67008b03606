"""Django's application behind the middleware: what an ASGI server is pointed at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application

from idempotency import IdempotencyMiddleware, MissingTenant, Policy
from idempotency.stores.sqlite import SQLiteStore

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

HOLDERS = {
    "Bearer token-1": "alice",
    "Bearer token-2": "alice",
    "Bearer token-3": "bob",
}  # yours: verify the token


def customer(scope: Mapping[str, Any]) -> str:
    """The tenant: the customer, whichever token identifies them."""
    token = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    if token not in HOLDERS:
        raise MissingTenant(
            "the request has no known token, so it does not say whose Idempotency-Key this is"
        )
    return HOLDERS[token]


application = IdempotencyMiddleware(
    get_asgi_application(),
    store=SQLiteStore(settings.DATA / "idempotency.sqlite3"),  # shared by all workers of this machine
    tenant=customer,
    policy=Policy(required=True, wait=5.0),
)
