"""The audit event of a change made on the dashboard, as a value and as a line in the log."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Literal

from idempotency._core.printable import printable

__all__ = ["AuditEvent", "log_audit"]

_log = logging.getLogger("idempotency.audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """
    Somebody saw an answer, or changed a record.

    Attributes:
        action: The requested action.
        key_id: 12 hex digits that stand for the key; "" for a purge.
        actor: Who made the request, from the application's `actor` function; "" if that returned nothing.
        result: "done", or why not: "changed" (the record changed after it was shown) or "absent".
        count: The number of deleted records.
    """

    action: Literal["show-outcome", "release", "forget", "purge"]
    key_id: str
    actor: str = ""
    result: Literal["done", "changed", "absent"]
    count: int = 0


def log_audit(event: AuditEvent) -> None:
    """
    Write *event* to the logger `idempotency.audit`, level info.

    >>> log_audit(AuditEvent(action="release", key_id="0bafe22156d2", actor="alice", result="done"))
    """
    fields = asdict(event)
    shown = " ".join(f"{name}={printable(str(value))}" for name, value in fields.items())
    _log.info("idempotency.audit %s", shown, extra={f"idempotency.{name}": v for name, v in fields.items()})
