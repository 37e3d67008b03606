"""
The WSGI middleware (PEP 3333): for Flask, Django, Pyramid, Bottle and any other WSGI application.

>>> from idempotency.stores.memory import SyncMemoryStore
>>> from idempotency.wsgi import IdempotencyMiddleware, by_environ
>>> def application(environ, start_response):
...     start_response("201 Created", [("Content-Type", "text/plain")])
...     return [b"charged"]
>>> protected = IdempotencyMiddleware(application, store=SyncMemoryStore(), tenant=by_environ("REMOTE_USER"))
"""

from __future__ import annotations

from idempotency.wsgi.middleware import IdempotencyMiddleware, LateClaim, claim
from idempotency.wsgi.request import by_environ

__all__ = ["IdempotencyMiddleware", "LateClaim", "by_environ", "claim"]
