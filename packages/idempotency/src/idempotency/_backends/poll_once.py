"""
Polls once before arming a timeout.

The body of most requests is there when it is asked for, and a timer for each would cost more than reading it.
`IDEMPOTENCY_IMPL=plain` switches this off: then a timeout is armed at once.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Coroutine, Generator
from functools import partial
from types import CoroutineType, coroutine
from typing import Any, TypeVar

from idempotency._backends.base import on_trio
from idempotency._runtime.implementation import PLAIN

__all__ = ["poll_once"]

T = TypeVar("T")


def poll_once(work: Awaitable[T]) -> tuple[bool, Any]:
    """
    Begin *work* in the caller's task, up to where it first has to wait.

    Returns:
        True and its result, if it never had to; False and what to await for it, under a deadline if there is one.
    """
    # On trio a deadline must enclose every scope that the work opens, so the work may not begin before it.
    if PLAIN or type(work) is not CoroutineType or ("trio" in sys.modules and on_trio()):
        return False, work
    try:
        waiting_for = work.send(None)
    except StopIteration as end:
        return True, end.value
    return False, _resume(work, waiting_for)


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
