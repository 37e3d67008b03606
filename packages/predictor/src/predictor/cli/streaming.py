"""
Answer the rows of a file piece by piece, in order, on several processes, in memory that does not grow with the file.

Each process loads the verified model once. At most two pieces for each process are on their way at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from predictor.cli.tables import Piece, Row
from predictor.errors import SchemaError
from predictor.model import Model

__all__ = ["Answered", "Source", "Task", "answer_pieces", "counted_from"]

_WORTH_PROCESSES = 6  # pieces: below, starting processes takes longer than they save


@dataclass(frozen=True, slots=True)
class Source:
    """The location and options of a model, for a process that loads it anew."""

    model: Path
    manifest: Path | None
    sha256: str | None

    def load(self) -> Model:
        """Return the verified model; errors as `Model.load`."""
        return Model.load(self.model, manifest=self.manifest, sha256=self.sha256)


class Task(Protocol):
    """The work on the rows of a piece; it can be pickled."""

    def __call__(self, model: Model, rows: Any, first: int) -> list[Row]:
        """Return the lines to write for *rows*, of which the first is row *first* of the file."""
        ...


@dataclass(frozen=True, slots=True)
class Answered:
    """The lines of one piece, and how far the file was read."""

    lines: list[Row]
    size: int  # rows
    read_bytes: int


def answer_pieces(
    source: Source, model: Model, task: Task, pieces: Iterator[Piece], *, jobs: int
) -> Generator[Answered, None, None]:
    """
    Yield the answers to *pieces*, in their order.

    Args:
        source: What *model* was loaded from.
        model: Answers in this process where the file is small, or *jobs* is 1.
        task: What to do with each piece.
        pieces: As `read_pieces` gives them.
        jobs: Processes, >= 1.

    Raises:
        SchemaError: A row does not fit; counted from the file's start.
    """
    head = list(islice(pieces, _WORTH_PROCESSES))
    pieces = chain(head, pieces)
    if jobs == 1 or len(head) < _WORTH_PROCESSES:
        for piece in pieces:
            yield Answered(_answer(model, task, piece), piece.size, piece.read_bytes)
        return
    # Not by fork: the parent may have threads, and their locks would be held for ever in the child.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(source, task))
    waiting: deque[tuple[Future[list[Row]], int, int]] = deque()
    try:
        for piece in pieces:
            waiting.append((pool.submit(_answer_here, piece), piece.size, piece.read_bytes))
            if len(waiting) == 2 * jobs:
                yield _taken(waiting)
        while waiting:
            yield _taken(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def counted_from(first: int) -> Iterator[None]:
    """Count the row of an error from the start of the file, not of its piece."""
    try:
        yield
    except SchemaError as error:
        if error.row is None:
            raise
        raise error.at_row(first + error.row) from error


def _taken(waiting: deque[tuple[Future[list[Row]], int, int]]) -> Answered:
    future, size, read_bytes = waiting.popleft()
    return Answered(future.result(), size, read_bytes)


def _answer(model: Model, task: Task, piece: Piece) -> list[Row]:
    return task(model, piece.rows(model.features, model.info.features), piece.first)


_loaded: tuple[Model, Task] | None = None


def _start(source: Source, task: Task) -> None:
    """Run once in each process of the pool."""
    global _loaded  # noqa: PLW0603  a process of the pool has no other place for what it loaded
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to all; the parent ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _loaded = source.load(), task


def _end_with_parent() -> None:
    """End this process where the parent was killed: the pool's pipes would not tell."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer_here(piece: Piece) -> list[Row]:
    if _loaded is None:
        raise RuntimeError("the pool was not started")
    model, task = _loaded
    return _answer(model, task, piece)
