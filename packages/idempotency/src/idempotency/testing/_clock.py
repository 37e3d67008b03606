"""Clocks for the contract: one that only moves when told, and the real one for stores with their own clock."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "FakeClock", "RealClock"]


class Clock(Protocol):
    """
    A clock for the contract, in seconds from any origin.

    Attributes:
        unit: Seconds in the contract's shortest duration.
        resolution: Seconds by which the store's clock may differ from this one; 0 if they are the same.
    """

    unit: float
    resolution: float

    def __call__(self) -> float:
        """Now, in seconds."""
        ...

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        ...


class FakeClock:
    """
    A clock that moves only when told.

    >>> clock = FakeClock()
    >>> before = clock()
    >>> clock.advance(3600)
    >>> clock() - before
    3600.0
    """

    unit: float = 1.0
    resolution: float = 0.0

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def __call__(self) -> float:
        """Now, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward by *seconds*; negative seconds go back, as a wall clock may."""
        self._now += seconds


class RealClock:
    """
    The machine's clock, for a store whose server has its own clock: `advance` sleeps.

    Args:
        unit: Seconds in the contract's shortest duration; the shorter, the faster the tests.
        resolution: Seconds by which the store may round or read late.
    """

    def __init__(self, *, unit: float = 0.02, resolution: float = 0.005) -> None:
        self.unit = unit
        self.resolution = resolution

    def __call__(self) -> float:
        """Now, in seconds."""
        return time.monotonic()

    def advance(self, seconds: float) -> None:
        """Sleep for *seconds* and twice the resolution, so that *seconds* pass by the store's clock too."""
        time.sleep(seconds + 2 * self.resolution)
