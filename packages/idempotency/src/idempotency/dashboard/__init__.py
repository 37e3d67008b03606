"""
A page for the people who look after keys: list, search, show one record, release, forget, purge.

An ASGI application to mount behind your own authorisation, or `idempotency dashboard --store URL` on your own machine.
Needs `asgi-idempotency[dashboard]`. It is HTML and one style sheet: no script, nothing from another host.

>>> from idempotency.dashboard import Counts, dashboard
>>> from idempotency.stores.memory import MemoryStore
>>> counts = Counts()  # give it to the middleware as well: hooks=[counts]
>>> app = dashboard(MemoryStore(), counts=counts)
"""

from __future__ import annotations

from idempotency._extras import missing

try:
    import starlette  # noqa: F401
except ModuleNotFoundError as error:
    raise missing("dashboard", "the dashboard", error) from error

from idempotency.dashboard.app import dashboard
from idempotency.dashboard.audit import AuditEvent, log_audit
from idempotency.dashboard.counts import Counts

__all__ = ["AuditEvent", "Counts", "dashboard", "log_audit"]
