"""
Signs of life for every run of one loop and one lease, from one timer.

A timer of its own for each run would cost more than the claim does, and nearly all runs end before their first sign
is due.
"""

from __future__ import annotations

from typing import Protocol

from idempotency._backends.base import Runtime
from idempotency._core import delays

__all__ = ["Beating", "Pulse"]


class Beating(Protocol):
    """What shows signs of life; hashed by identity."""

    async def beat(self) -> None:
        """Show one."""


class Pulse:
    """
    Lets each registered run beat every lease/3; the first time after half of that to the whole (E3).

    The timer ticks twice an interval and stops by itself once nothing is registered.
    """

    __slots__ = ("_armed", "_half", "_runtime", "_ticks")

    def __init__(self, runtime: Runtime, lease: float) -> None:
        self._runtime = runtime
        self._half = delays.renew_interval(lease) / 2
        self._ticks: dict[Beating, int] = {}
        self._armed = False

    def add(self, run: Beating) -> None:
        """Let *run* beat, in a task of its own, until it is removed."""
        self._ticks[run] = 0
        if not self._armed:
            self._armed = True
            self._runtime.after(self._half, self._tick)

    def remove(self, run: Beating) -> None:
        """Let *run* beat no more; harmless if it was removed before."""
        self._ticks.pop(run, None)

    async def _tick(self) -> None:
        if not self._ticks:
            self._armed = False
            return
        self._runtime.after(self._half, self._tick)
        for run, ticks in list(self._ticks.items()):
            self._ticks[run] = ticks + 1
            if ticks % 2:
                self._runtime.spawn(run.beat)
