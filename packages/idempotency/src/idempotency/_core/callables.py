"""Tells plain functions from coroutine functions and classes."""

from __future__ import annotations

import inspect

__all__ = ["is_async", "is_plain"]


def is_async(function: object) -> bool:
    """Whether a call of *function* has to be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def is_plain(function: object) -> bool:
    """Whether *function* is a callable that is done when it returns, and not a class."""
    return callable(function) and not isinstance(function, type) and not is_async(function)
