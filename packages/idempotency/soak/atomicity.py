"""Looks from a thread whether effect and record are there together, or neither is, whenever somebody looks (I14)."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Looks"]

_EVERY = 0.1  # s


class Looks:
    """
    Looks again and again, until it is stopped; without *look* there is nothing to see.

    Attributes:
        count: How often it looked.
        torn: How much it found that was there alone.
    """

    def __init__(self, look: Callable[[], int] | None) -> None:
        self.count = self.torn = 0
        self._look = look
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while self._look is not None and not self._over.wait(_EVERY):
            self.torn += self._look()
            self.count += 1
