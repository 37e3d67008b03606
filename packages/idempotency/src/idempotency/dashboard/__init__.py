"""
Pages for operators: list, search, show one record, count, release, forget, purge.

Mount the ASGI application behind your own authorisation, or run `idempotency dashboard --store URL` on your machine.
Needs `asgi-idempotency[dashboard]`. The pages are HTML and one style sheet, without scripts or other hosts.

>>> from idempotency.counts import Counts
>>> from idempotency.dashboard import dashboard
>>> from idempotency.stores.memory import MemoryStore
>>> counts = Counts()  # give it to the middleware as well: hooks=[counts]
>>> app = dashboard(MemoryStore(), counts=counts)
"""

from __future__ import annotations

from idempotency._runtime.extras import missing

try:
    import starlette  # noqa: F401
except ModuleNotFoundError as _error:
    raise missing("dashboard", "the dashboard", _error) from _error

from idempotency.dashboard.app import dashboard
from idempotency.dashboard.audit import AuditEvent, log_audit

__all__ = ["AuditEvent", "dashboard", "log_audit"]
