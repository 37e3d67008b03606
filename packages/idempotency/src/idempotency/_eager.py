"""
A deadline that costs nothing where there is nothing to wait for.

The body of most requests is there when it is asked for; arming a timer for each would cost more than reading it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar

from idempotency._runtime import on_trio, running

__all__ = ["within"]

T = TypeVar("T")


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """
    Run *work* in the caller's task, under a deadline from the moment it first has to wait.

    Raises:
        TimeoutError: It waited longer than *seconds*.
    """
    if on_trio():  # no head start there: its deadline must enclose every scope that the work opens
        return await running().within(seconds, lambda: work)
    try:
        waiting_for = work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    return await running().within(seconds, partial(_resume, work, waiting_for))


@coroutine
def _resume(work: Coroutine[Any, Any, T], waiting_for: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that has begun, as `await` would have (PEP 380)."""
    while True:
        try:
            sent = yield waiting_for
        except BaseException as error:
            step = partial(work.throw, error)
        else:
            step = partial(work.send, sent)
        try:
            waiting_for = step()
        except StopIteration as end:
            result: T = end.value
            return result
