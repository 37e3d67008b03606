"""Refuses what a decorated function hands out for later: it would be recorded as done before any of it is."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any, get_origin

from idempotency._core.annotations import resolve

__all__ = ["require_begun", "require_done", "return_type"]

_DEFERRED: frozenset[Any] = frozenset(
    {AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Generator, Iterator}
)


def return_type(function: Callable[..., Any], operation: str) -> Any:
    """
    What *function* is annotated to return.

    Raises:
        TypeError: An awaitable or an iterator.
    """
    returns = resolve(function)
    if (get_origin(returns) or returns) in _DEFERRED:
        raise TypeError(
            f"{operation}: a function that returns an awaitable or an iterator would be recorded before its work "
            "is done; await it, or collect it, inside"
        )
    return returns


def require_done(value: object, operation: str) -> None:
    """
    Refuse what a plain function returned, as its own error, where an annotation would have shown it.

    Raises:
        TypeError: *value* is an awaitable or a generator.
    """
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError(f"{operation} returned an awaitable: define it by `async def`, over a Store")
    require_begun(value, operation)


def require_begun(value: object, operation: str) -> None:
    """
    Refuse what a coroutine function returned, as its own error. A task passes: its work goes on, so its key stays used.

    Raises:
        TypeError: *value* is a coroutine or a generator.
    """
    if inspect.iscoroutine(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
        if inspect.iscoroutine(value):
            value.close()  # else it warns that nobody awaited it
        raise TypeError(
            f"{operation} returned work that is still to be done: await it, or collect it, inside"
        )
