"""The progress bar of a long run, and a clean end on SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from predictor.cli.tables import STDIN, files_of

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["ending_cleanly", "shown"]


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Make SIGTERM raise `SystemExit(143)` inside the block, so that unfinished files are removed as after an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise SystemExit(128 + number)


class _Part(Protocol):
    @property
    def size(self) -> int: ...
    @property
    def read_bytes(self) -> int: ...


_AnyPart = TypeVar("_AnyPart", bound=_Part)


def shown(parts: Iterator[_AnyPart], path: Path, *, is_quiet: bool) -> Iterator[_AnyPart]:
    """
    Yield *parts*, and show on stderr how much of *path* is done and how many rows per second.

    The progress bar needs a terminal and rich (the `cli` extra).
    """
    progress = None if is_quiet or not sys.stderr.isatty() else _bar()
    if progress is None:
        yield from parts
        return
    with progress:
        total = None if path == STDIN else sum(file.stat().st_size for file in files_of(path))
        total = total or None  # a pipe has no length
        task, rows = progress.add_task(path.name, total=total, rows=0, rate=0), 0
        for part in parts:
            yield part
            rows += part.size
            elapsed = progress.tasks[0].elapsed or 1e-9
            progress.update(task, completed=part.read_bytes, rows=rows, rate=rows / elapsed)


def _bar() -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[rows]:,} rows  {task.fields[rate]:,.0f} rows/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
