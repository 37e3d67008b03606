"""Describes a record for people: its state and the kind of its outcome, never a key, a header or a body."""

from __future__ import annotations

import json
from typing import Final, Literal, TypeAlias

from idempotency._core.types import Record, State

__all__ = ["STATES", "StateName", "outcome_kind", "state_name"]

StateName: TypeAlias = Literal["running", "abandoned", "completed"]

STATES: Final[tuple[StateName, ...]] = ("running", "abandoned", "completed")
_KINDS: Final = ("response", "value", "unreplayable", "sealed")


def state_name(record: Record) -> StateName:
    """The state of the record; "abandoned" if its lease has lapsed before an outcome was recorded."""
    if record.state is State.COMPLETED:
        return "completed"
    return "running" if record.lease_left > 0 else "abandoned"


def outcome_kind(outcome: bytes) -> str:
    """
    The kind of a recorded outcome, with the status of a response.

    >>> outcome_kind(b'{"outcome": "response", "status_code": 201}')
    'response 201'
    >>> outcome_kind(b"not JSON")
    'unreadable'
    """
    try:
        members = json.loads(outcome)
        kind, status = members["outcome"], members.get("status_code")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "unreadable"
    if kind not in _KINDS:  # show known words only: anything else may be a client's data
        return "unreadable"
    return f"{kind} {status}" if type(status) is int else str(kind)
