"""
Polls once before arming a timeout.

Most request bodies have already arrived when they are read, and arming a timer for each would cost more than the
read. `IDEMPOTENCY_IMPL=plain` switches this off: then the timeout is armed first.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Coroutine, Generator
from functools import partial
from types import CoroutineType, coroutine
from typing import Any, TypeVar

from idempotency._runtime.event_loop import on_trio
from idempotency._runtime.implementation import PLAIN

__all__ = ["poll_once"]

T = TypeVar("T")


def poll_once(work: Awaitable[T]) -> tuple[bool, Any]:
    """
    Run *work* in the caller's task until it first has to wait.

    Returns:
        True and the result if it never waited; otherwise False and an awaitable for the rest, to be awaited under the
        deadline.
    """
    # On trio a deadline must enclose every scope that *work* opens, so the deadline must be set first.
    if PLAIN or type(work) is not CoroutineType or ("trio" in sys.modules and on_trio()):
        return False, work
    try:
        waiting_for = work.send(None)
    except StopIteration as end:
        return True, end.value
    return False, _resume(work, waiting_for)


@coroutine
def _resume(work: Coroutine[Any, Any, T], waiting_for: Any) -> Generator[Any, Any, T]:
    """Continues a coroutine that has begun, as `await` would (PEP 380)."""
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
