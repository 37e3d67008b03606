"""Plans the faults of a store call by call, for the async and the sync faulty store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Literal, TypeAlias

from idempotency._core.errors import StoreUnavailable
from idempotency._core.types import StorageKey

__all__ = ["TICK", "Fault", "FaultPlan", "Method"]

Method: TypeAlias = Literal["acquire", "renew", "complete", "release", "get"]

TICK = 0.002  # s between checks of whether a hung call may go on


class Fault(Enum):
    """A fault of one call. (A float instead of a `Fault` delays the call by that many seconds.)"""

    FAIL_BEFORE = "fail before"
    """`StoreUnavailable`; the call had no effect."""

    FAIL_AFTER = "fail after"
    """`StoreUnavailable`, although the call took effect: its reply was lost."""

    DROP = "drop"
    """The call takes effect and is answered; then the record is lost, as by eviction or failover (needs `forget`)."""

    HANG = "hang"
    """The call waits until `resume` and takes effect then."""


class FaultPlan:
    """Assigns faults to calls, and lists the calls that were made."""

    def __init__(self) -> None:
        self.calls: list[tuple[Method, StorageKey]] = []
        self._faults: dict[str, Iterator[Fault | float | None]] = {}
        self._hung = True

    def inject(self, method: Method, faults: Iterable[Fault | float | None]) -> None:
        """
        Give the next calls of *method* one fault each; calls with None, and calls after the last fault, work.

        With `itertools.repeat(Fault.FAIL_BEFORE)` the store never works again; an empty list repairs it.
        """
        self._faults[method] = iter(faults)
        self._hung = True

    def resume(self) -> None:
        """Let every hung call go on."""
        self._hung = False

    def _next(self, method: Method, key: StorageKey) -> Fault | float | None:
        self.calls.append((method, key))
        fault = next(self._faults.get(method, iter(())), None)
        if fault is Fault.FAIL_BEFORE:
            raise StoreUnavailable(f"injected: {method} was not sent")
        return fault
