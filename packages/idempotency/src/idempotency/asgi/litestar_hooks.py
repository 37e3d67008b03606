"""
Warns if Litestar has `before_send` hooks outside of the middleware.

Such a hook is called with an answer that was recorded already. If it commits, as SQLAlchemy plugins make it do, and
fails, retries get an answer that is not true.
"""

from __future__ import annotations

import logging

from idempotency.asgi.types import Scope

__all__ = ["LITESTAR", "warn_of_hooks"]

LITESTAR = "litestar_app"
"""In the scope of every request that Litestar has begun to handle."""

_log = logging.getLogger("idempotency")
_warned = False


def warn_of_hooks(scope: Scope) -> None:
    """Warn, once in this process, if the application in *scope* has such hooks."""
    global _warned  # noqa: PLW0603
    if _warned or not getattr(scope[LITESTAR], "before_send", None):
        return
    _warned = True
    _log.warning(
        "Litestar calls its before_send hooks after the answer was recorded. If one of them commits a transaction, use "
        "app = LateClaim(app, store=store) around Litestar, instead of a middleware in it, and claim() in the handler"
    )
