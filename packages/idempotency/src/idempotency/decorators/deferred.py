"""Refuses awaitables and generators as values: they would be recorded as done before their work is done."""

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
    The return annotation of *function*.

    Raises:
        TypeError: It is an awaitable or an iterator.
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
    Refuse the value of a plain function whose work is not done. Needed where the annotation does not show it.

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
    Refuse the value of a coroutine function whose work has not begun. A task is accepted: its work goes on.

    Raises:
        TypeError: *value* is a coroutine or a generator.
    """
    if inspect.iscoroutine(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
        if inspect.iscoroutine(value):
            value.close()  # otherwise Python warns that it was never awaited
        raise TypeError(
            f"{operation} returned work that is not done yet: await it, or collect it, inside the function"
        )
