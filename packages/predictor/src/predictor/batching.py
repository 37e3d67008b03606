"""Decides, without a loop or a clock, what waits for a batch, when a flush is due, and what it takes."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Generic, TypeVar

from predictor.errors import Overloaded

__all__ = ["Due", "WaitingRows"]

T = TypeVar("T")


class Due(Enum):
    """The time of the next flush, as of the last change."""

    NOW = auto()  # a batch is full: at the next turn of the loop
    LATER = auto()  # the first row of a batch: after the shell's waiting time
    SET = auto()  # a flush is already due


class WaitingRows(Generic[T]):
    """Rows in order of arrival, handed out in batches; nothing is ever reordered or handed out twice."""

    def __init__(self, *, max_rows: int, max_queue: int) -> None:
        if not 1 <= max_rows <= max_queue:
            raise ValueError("1 <= max_rows <= max_queue must hold")
        self.max_rows = max_rows
        self.max_queue = max_queue
        self._rows: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: T) -> Due:
        """
        Queue *row* and tell when to flush.

        Raises:
            Overloaded: `max_queue` rows wait already; this one was not queued.
        """
        if len(self._rows) >= self.max_queue:
            raise Overloaded(f"{self.max_queue} rows are waiting; shed this request or raise max_queue")
        self._rows.append(row)
        if len(self._rows) == self.max_rows:
            return Due.NOW
        return Due.LATER if len(self._rows) == 1 else Due.SET

    def take(self) -> list[T]:
        """Hand out the oldest rows, at most `max_rows`; the caller flushes again while rows remain."""
        return [self._rows.popleft() for _ in range(min(self.max_rows, len(self._rows)))]
