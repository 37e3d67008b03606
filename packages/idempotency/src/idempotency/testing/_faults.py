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
    """A fault of one call; a float instead delays the call by so many seconds."""

    FAIL_BEFORE = "fail before"
    """`StoreUnavailable`, and nothing has happened."""

    FAIL_AFTER = "fail after"
    """`StoreUnavailable`, though the call took effect: its reply was lost."""

    DROP = "drop"
    """The call takes effect and is answered; then the record is lost, as by eviction or failover (needs `forget`)."""

    HANG = "hang"
    """Nothing happens until `resume`; then the call takes effect, however late."""


class FaultPlan:
    """Assigns faults to calls, and lists the calls that were made."""

    def __init__(self) -> None:
        self.calls: list[tuple[Method, StorageKey]] = []
        self._faults: dict[str, Iterator[Fault | float | None]] = {}
        self._hung = True

    def inject(self, method: Method, faults: Iterable[Fault | float | None]) -> None:
        """
        Let the next calls of *method* meet *faults*, one each; None lets a call pass, and so does the end.

        `itertools.repeat(Fault.FAIL_BEFORE)` is a store that never works again; an empty list mends it.
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
