"""
Overrides every engine of the process, for an application's tests (see `idempotency.testing`).

These are not context variables, because a test client runs the application in its own threads or loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakSet

__all__ = ["Overrides", "overrides"]


class Overrides:
    """
    Attributes:
        off: Whether everything runs unprotected.
    """

    def __init__(self) -> None:
        self.off: bool = False
        self._lock = threading.RLock()
        self._engines: WeakSet[Any] = WeakSet()
        self._replace: Callable[[Any], Any] | None = None
        self._replaced: list[tuple[Any, Any]] = []  # engines, with their original stores

    def adopt(self, engine: Any) -> None:
        """Register *engine*, which must already have its store, for the overrides."""
        with self._lock:
            self._engines.add(engine)
            if self._replace is not None:
                self._swap(engine, self._replace)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Run everything unprotected, until the context ends."""
        before, self.off = self.off, True
        try:
            yield
        finally:
            self.off = before

    @contextmanager
    def stores(self, replace: Callable[[Any], Any]) -> Iterator[None]:
        """
        Replace the store of every engine by `replace(store)`, also of engines made before the context ends.

        Raises:
            RuntimeError: The stores are already replaced.
        """
        with self._lock:
            if self._replace is not None:
                raise RuntimeError(
                    "the stores are already swapped: leave the other `with swapped_stores()` block first"
                )
            self._replace = replace
        try:
            with self._lock:
                for engine in list(self._engines):
                    self._swap(engine, replace)
            yield
        finally:
            with self._lock:
                for engine, store in self._replaced:
                    engine.store = store
                self._replaced.clear()
                self._replace = None

    def _swap(self, engine: Any, replace: Callable[[Any], Any]) -> None:
        replacement = replace(engine.store)
        self._replaced.append((engine, engine.store))
        engine.store = replacement


overrides: Final = Overrides()
