"""
Renews the leases of every run with the same lease in one event loop, from one timer (E3).

A timer for each run would cost more than its claim, and nearly all runs end before their first renewal is due. Without
an event loop, `idempotency.engine.scheduler` renews the leases.
"""

from __future__ import annotations

from typing import Protocol

from idempotency._core import delays
from idempotency._runtime.event_loop import Runtime

__all__ = ["Renewable", "Heartbeat"]


class Renewable(Protocol):
    """A run whose lease can be renewed; hashed by identity."""

    async def renew_lease(self) -> None:
        """Renew the lease once."""


class Heartbeat:
    """
    Renews the lease of each registered run every lease/3.

    The timer ticks every lease/6 and stops by itself once nothing is registered. A run registers between two ticks, so
    its first renewal comes after lease/6 to lease/3.

    Attributes:
        ticks: How many ticks each registered run has seen. Remove a run from it to stop renewing its lease.
    """

    __slots__ = ("_armed", "_half", "_runtime", "ticks")

    def __init__(self, runtime: Runtime, lease: float) -> None:
        self._runtime = runtime
        self._half = delays.renew_interval(lease) / 2
        self.ticks: dict[Renewable, int] = {}
        self._armed = False

    def add(self, run: Renewable) -> None:
        """Renew the lease of *run*, each time in a new task, until the run is removed."""
        self.ticks[run] = 0
        if not self._armed:
            self._armed = True
            self._runtime.after(self._half, self._tick)

    def _tick(self) -> None:
        if not self.ticks:
            self._armed = False
            return
        self._runtime.after(self._half, self._tick)
        for run, ticks in list(self.ticks.items()):
            self.ticks[run] = ticks + 1
            if ticks % 2:
                self._runtime.spawn(run.renew_lease)
