"""
Signs of life for every run of one loop and one lease, from one timer.

A timer of its own for each run would cost more than the claim does, and nearly all runs end before their first sign
is due.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from idempotency._runtime import Runtime

__all__ = ["Pulse"]

Beat: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Pulse:
    """
    Calls each registered beat every *interval* seconds; the first time after half of it to the whole (E3).

    The timer ticks twice an interval and stops by itself once nothing is registered.
    """

    __slots__ = ("_armed", "_interval", "_runtime", "_ticks")

    def __init__(self, runtime: Runtime, interval: float) -> None:
        self._runtime = runtime
        self._interval = interval
        self._ticks: dict[Beat, int] = {}
        self._armed = False

    def add(self, beat: Beat) -> None:
        """Call *beat*, in a task of its own, until it is removed."""
        self._ticks[beat] = 0
        if not self._armed:
            self._armed = True
            self._runtime.after(self._interval / 2, self._tick)

    def remove(self, beat: Beat) -> None:
        """Call *beat* no more; harmless if it was removed before."""
        self._ticks.pop(beat, None)

    async def _tick(self) -> None:
        if not self._ticks:
            self._armed = False
            return
        self._runtime.after(self._interval / 2, self._tick)
        for beat, ticks in list(self._ticks.items()):
            self._ticks[beat] = ticks + 1
            if ticks % 2:
                self._runtime.spawn(beat)
