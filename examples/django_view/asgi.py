"""Django's application behind the middleware: what an ASGI server is pointed at."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.asgi import get_asgi_application

from idempotency import IdempotencyMiddleware, Policy, by_header
from idempotency.stores.sqlite import SQLiteStore

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

application = IdempotencyMiddleware(
    get_asgi_application(),
    store=SQLiteStore(settings.DATA / "idempotency.sqlite3"),  # shared by all workers of this machine
    tenant=by_header("Authorization"),
    policy=Policy(required=True, wait=5.0),
)
