"""The queue of a batcher, without an event loop or a clock: it says when a flush is due, and which rows it takes."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Generic, TypeVar

from predictor.errors import Overloaded

__all__ = ["Due", "WaitingRows"]

T = TypeVar("T")


class Due(Enum):
    """When the caller of `WaitingRows.add` must flush."""

    NOW = auto()  # a batch is full: flush at the next iteration of the loop
    LATER = auto()  # this is the first row: flush after the batcher's `max_wait`
    SET = auto()  # a flush is scheduled already


class WaitingRows(Generic[T]):
    """Rows in order of arrival, handed out in batches; each row once, never reordered."""

    def __init__(self, *, max_rows: int, max_queue: int) -> None:
        if not 1 <= max_rows <= max_queue:
            raise ValueError("max_rows must be at least 1, and max_queue at least max_rows")
        self.max_rows = max_rows
        self.max_queue = max_queue
        self._rows: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: T) -> Due:
        """
        Queue *row* and return when to flush.

        Raises:
            Overloaded: `max_queue` rows are waiting; *row* was not queued.
        """
        if len(self._rows) >= self.max_queue:
            raise Overloaded(f"{self.max_queue} rows are waiting; shed this request or raise max_queue")
        self._rows.append(row)
        if len(self._rows) == self.max_rows:
            return Due.NOW
        return Due.LATER if len(self._rows) == 1 else Due.SET

    def take(self) -> list[T]:
        """Remove and return the oldest rows, at most `max_rows`; the caller must flush again if rows remain."""
        return [self._rows.popleft() for _ in range(min(self.max_rows, len(self._rows)))]
