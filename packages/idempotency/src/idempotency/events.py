"""
Events: what happened to a keyed request, as values. `idempotency.hooks` turns them into log lines, metrics and spans.

No event carries a raw key, a header or a body: `key_id` is twelve hex digits of a digest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from idempotency._core.printable import printable

__all__ = [
    "ClaimLost",
    "Claimed",
    "Event",
    "FailedAfterRecord",
    "Hook",
    "Refused",
    "Replayed",
    "Settled",
    "Step",
    "StoreFailed",
    "emit",
    "traceparent",
]

Step: TypeAlias = Literal["acquire", "renew", "complete", "release"]
"""The call to the store."""

_log = logging.getLogger("idempotency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """
    A run begins.

    Attributes:
        operation: "POST /charges", or the name given to a decorator.
        attempt: 1 for the first run; more if an abandoned run was taken over.
        waited: Seconds spent waiting for a duplicate that did not finish; 0.0 if none ran.
    """

    operation: str
    key_id: str
    attempt: int
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """
    A request is answered by a recorded outcome; nothing runs.

    Attributes:
        age: Seconds since the outcome was recorded.
        waited: Seconds spent waiting for the running duplicate; 0.0 if it was done already.
        traceparent: The trace context (W3C) of the run that made the outcome, if a hook recorded one.
    """

    operation: str
    key_id: str
    age: float
    waited: float
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """
    A request is answered by a problem; nothing runs.

    Attributes:
        key_id: None if the request had no readable key.
        problem: The slug of the problem, such as "in-progress" or "key-reused".
        status: Its HTTP status.
    """

    operation: str
    key_id: str | None
    problem: str
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """
    A run is over.

    Attributes:
        result: "kept" (recorded; retries get a replay), "unreplayable" (recorded as done, body not kept), "released"
            (the key is free, a retry runs again) or "abandoned" (cancelled: the outcome is unknown, and the key stays
            taken until the lease ends).
        duration: Seconds from the claim to this event, by a monotonic clock.
    """

    operation: str
    key_id: str
    attempt: int
    result: Literal["kept", "unreplayable", "released", "abandoned"]
    duration: float

    @property
    def kept(self) -> bool:
        """Whether a retry will be answered from the record instead of running again."""
        return self.result in {"kept", "unreplayable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAfterRecord:
    """
    The application raised, or was cancelled, after its answer had been recorded. Retries get that answer, although work
    that was to follow it, such as a commit, may be missing. `Policy(record="return")` prevents this.

    Attributes:
        error: The class name of the exception, for counting.
    """

    operation: str
    key_id: str
    attempt: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimLost:
    """A run no longer owns its key: it stalled past its lease, or the record was lost. A second run is possible."""

    operation: str
    key_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFailed:
    """
    The store gave no answer.

    Attributes:
        step: The call that failed.
        action: What happens now: "refused" (503), "bypassed" (the run is unprotected), "retrying", or "unrecorded" (the
            handler's answer was sent but not recorded: until the lease ends a retry gets 409; then it runs again or,
            under at most once, gets `OutcomeUnknown`).
        error: The class name of the error, for counting.
        reason: The message of the store's error, for the log: it says what to do. "" if the exception was no
            `StoreError`, because its message may contain anything.
    """

    operation: str
    key_id: str
    step: Step
    action: Literal["refused", "bypassed", "retrying", "unrecorded"]
    error: str
    reason: str = ""


Event: TypeAlias = Claimed | Replayed | Refused | Settled | FailedAfterRecord | ClaimLost | StoreFailed

Hook: TypeAlias = Callable[[Event], None]
"""Called for every event, in the request's own task, so it must be quick. Its exceptions are logged, not raised."""


def emit(hooks: Sequence[Hook], event: Event) -> None:
    """Call every hook; its exceptions are logged. Without hooks, a lost claim and a failed store are logged."""
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            _log.exception("an idempotency hook failed")
    if not hooks:
        match event:
            case ClaimLost(operation=operation, key_id=name):
                _log.error("claim lost: %s may have run twice (key %s)", operation, name)
            case StoreFailed(operation=operation, key_id=name, step=step, action=action, error=error):
                why = printable(event.reason or error)
                _log.warning("store failed at %s: %s, %s (key %s): %s", step, operation, action, name, why)


def traceparent(hooks: Sequence[Hook]) -> str | None:
    """The trace context to record with an outcome, from the first hook that has one; its exceptions are logged."""
    for hook in hooks:
        current: Callable[[], str | None] | None = getattr(hook, "traceparent", None)
        if current is not None:
            try:
                return current()
            except Exception:
                _log.exception("an idempotency hook failed")
                return None
    return None
