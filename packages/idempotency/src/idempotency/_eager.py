"""
A deadline that costs nothing where there is nothing to wait for.

The body of most requests is there when it is asked for; arming a timer for each would cost more than reading it.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar

from idempotency._runtime import on_trio, running

__all__ = ["head_start", "within"]

T = TypeVar("T")
_NOT_BEGUN = object()


def head_start(work: Coroutine[Any, Any, T]) -> tuple[bool, Any]:
    """
    Begin *work* in the caller's task, up to where it first has to wait.

    Returns:
        True and its result, if it never had to; False and what to hand to `within`.
    """
    # Not on trio: its deadline must enclose every scope that the work opens.
    if "trio" in sys.modules and on_trio():
        return False, _NOT_BEGUN
    try:
        return False, work.send(None)
    except StopIteration as end:
        return True, end.value


async def within(seconds: float, work: Coroutine[Any, Any, T], waiting_for: Any) -> T:
    """
    The result of *work* that got a head start, under a deadline from now on.

    Raises:
        TimeoutError: It waited longer than *seconds*.
    """
    if waiting_for is _NOT_BEGUN:
        return await running().within(seconds, lambda: work)
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
