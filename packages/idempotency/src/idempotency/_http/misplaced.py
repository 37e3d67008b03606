"""
Finds protection that a route does not have, because `protect` was put above the decorator that registers the endpoint.

The framework then holds the function below `protect`, and would run it without a claim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

__all__ = ["Bare"]


class Bare:
    """The functions that were given to `protect`, without its protection."""

    def __init__(self) -> None:
        self._functions: WeakSet[Any] = WeakSet()

    def add(self, function: Callable[..., Any]) -> None:
        """Note *function*, and what other decorators wrapped in it."""
        layer: Any = function
        while layer is not None:
            try:
                self._functions.add(layer)
            except TypeError:  # an object without weak references
                return
            layer = getattr(layer, "__wrapped__", None)

    def refuse(self, endpoint: Any, name: str) -> None:
        """
        Refuse to serve *endpoint* if it is one of these functions.

        Args:
            name: The name of the route, for the error.
        Raises:
            RuntimeError: The endpoint would run without protection.
        """
        try:
            bare = endpoint in self._functions
        except TypeError:
            return
        if bare:
            raise RuntimeError(
                f"{name} is not protected: its endpoint was given to protect after it was registered. Put protect "
                "below the decorator of the route; to serve a function with and without protection, register two "
                "functions"
            )
