"""
Warns if Litestar has `before_send` hooks outside the middleware.

Such a hook runs after the answer was recorded. If it commits a transaction, as with SQLAlchemy plugins, and that fails,
retries get an answer that is not true.
"""

from __future__ import annotations

import logging

from idempotency.asgi.types import Scope

__all__ = ["LITESTAR", "warn_of_hooks"]

LITESTAR = "litestar_app"
"""A key in the scope of every request that Litestar handles."""

_log = logging.getLogger("idempotency")
_warned = False


def warn_of_hooks(scope: Scope) -> None:
    """Warn, once in this process, if the application in *scope* has such hooks."""
    global _warned  # noqa: PLW0603  not kept by a middleware, because Litestar makes one for each route
    if _warned or not getattr(scope[LITESTAR], "before_send", None):
        return
    _warned = True
    _log.warning(
        "Litestar calls its before_send hooks after the answer was recorded. If one of them commits a transaction, use "
        "app = LateClaim(app, store=store) around Litestar, instead of a middleware in it, and claim() in the handler"
    )
