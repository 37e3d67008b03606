"""
Lists the statements of each store call in order, independent of the driver that executes them.

A method of a dialect's records is a generator: it yields each statement and is sent the rows. Two short loops drive it,
one with `await` and one without, so nothing is decided twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

__all__ = ["Begin", "Query", "Result", "Steps", "drive", "drive_async"]

T = TypeVar("T")


class Query(NamedTuple):
    """One statement; parameters are written `%(name)s`."""

    sql: str
    values: Mapping[str, Any]


class Begin(NamedTuple):
    """
    Begin a write transaction, or check that one has begun.

    Attributes:
        lock: A statement that takes the write lock, for drivers that cannot begin with it; None if rows are locked.
    """

    lock: Query | None = None


class Result(NamedTuple):
    """
    The database's reply.

    Attributes:
        rows: Empty for a statement that returns none.
        changed: The number of rows that a write changed; meaningless for other statements.
    """

    rows: list[tuple[Any, ...]]
    changed: int


Steps: TypeAlias = Generator[Query | Begin, Result, T]


def drive(steps: Steps[T], run: Callable[[Query | Begin], Result]) -> T:
    """Run *steps* to their end; an error of *run* is raised inside *steps*, at the statement, and then here."""
    try:
        step = next(steps)
        while True:
            try:
                result = run(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def drive_async(steps: Steps[T], run: Callable[[Query | Begin], Awaitable[Result]]) -> T:
    """See `drive`."""
    try:
        step = next(steps)
        while True:
            try:
                result = await run(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
