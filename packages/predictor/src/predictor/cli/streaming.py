"""
Predicts the rows of a file piece by piece, in order, in several processes, with bounded memory.

Each process loads and verifies the model once. At most two pieces per process are in memory at a time.
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

_WORTH_PROCESSES = 6  # with fewer pieces, starting processes takes longer than they save


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a model and its expected SHA-256, for a process that loads it."""

    model: Path
    manifest: Path | None
    sha256: str | None

    def load(self) -> Model:
        """Return the verified model; errors as `Model.load`."""
        return Model.load(self.model, manifest=self.manifest, sha256=self.sha256)


class Task(Protocol):
    """A function from the rows of a piece to lines of output; it can be pickled."""

    def __call__(self, model: Model, rows: Any, first: int) -> list[Row]:
        """Return the lines to write for *rows*; *first* is the number of the first of them in the file."""
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
        source: The files that *model* was loaded from.
        model: Used in this process, if the file is small or *jobs* is 1.
        task: What to do with each piece.
        pieces: The pieces of `read_pieces`.
        jobs: Number of processes, >= 1.

    Raises:
        SchemaError: A row does not fit; its number is counted from the start of the file.
    """
    head = list(islice(pieces, _WORTH_PROCESSES))
    pieces = chain(head, pieces)
    if jobs == 1 or len(head) < _WORTH_PROCESSES:
        for piece in pieces:
            yield Answered(_answer(model, task, piece), piece.size, piece.read_bytes)
        return
    # Not fork: the parent may have threads, and a lock that one of them holds is never released in the child.
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
    """Change the row number of a `SchemaError` from within the piece to within the file; *first* is the piece's."""
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
    """Load the model, once in each process of the pool."""
    global _loaded  # noqa: PLW0603  a pool's initializer can pass its result only through a global
    # The terminal sends SIGINT to all processes; only the parent handles it, and it ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _loaded = source.load(), task


def _end_with_parent() -> None:
    """End this process if the parent was killed; the pool itself would not notice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer_here(piece: Piece) -> list[Row]:
    if _loaded is None:
        raise RuntimeError("the pool's initializer did not run: start the pool with _start")
    model, task = _loaded
    return _answer(model, task, piece)
