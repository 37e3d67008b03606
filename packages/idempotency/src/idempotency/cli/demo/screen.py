"""Prints lines to any terminal: in colour only if wanted, and never wider than the terminal."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TextIO, TypeAlias

__all__ = ["Screen", "Style", "wants_colour"]

Style: TypeAlias = Literal["plain", "title", "dim", "good", "warn", "bad"]

_CODES: Final[dict[Style, str]] = {"title": "1", "dim": "2", "good": "32", "warn": "33", "bad": "31"}
_NARROWEST: Final = 24
_WIDEST: Final = 80


def wants_colour(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether to use colours: on a terminal that has them, unless NO_COLOR is set (no-color.org)."""
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return stream.isatty()


class Screen:
    """
    Writes to *stream*, each piece at once.

    Args:
        columns: The width of a line; by default the terminal's, at most 80.
        colour: Whether to use colours; by default `wants_colour` decides.
    """

    def __init__(self, stream: TextIO, *, columns: int | None = None, colour: bool | None = None) -> None:
        columns = shutil.get_terminal_size((_WIDEST, 24)).columns if columns is None else columns
        self.columns: int = max(_NARROWEST, min(columns, _WIDEST))
        self._stream = stream
        self._colour = wants_colour(stream, os.environ) if colour is None else colour
        self._column = 0

    def text(self, text: str = "", style: Style = "plain", *, indent: int = 0) -> None:
        """Print *text* on new lines, wrapped between words."""
        self.end_line()
        for line in textwrap.wrap(text, self.columns - indent) or [""]:
            self._write(" " * indent, "plain")
            self._write(line, style)
            self._write("\n", "plain")
        self._column = 0

    def piece(self, text: str, style: Style = "plain", *, at: int = 0, indent: int = 4) -> None:
        """
        Print *text* on the current line, from column *at* on if there is room; otherwise on the next line.

        Args:
            indent: The column where text on the next line begins.
        """
        at = max(at, self._column + 2 if self._column else 0)
        if at + len(text) > self.columns:
            self.end_line()
            at = indent
        self._write(" " * (at - self._column), "plain")
        for line in textwrap.wrap(text, self.columns - at):
            if self._column > at:
                self.end_line()
                self._write(" " * at, "plain")
            self._write(line, style)

    def end_line(self) -> None:
        """Go to the next line, unless the current line is empty."""
        if self._column:
            self._write("\n", "plain")
            self._column = 0

    def table(self, heading: Sequence[str], rows: Sequence[tuple[Sequence[str], Style]]) -> None:
        """Print a table if there is room; otherwise a short list for each row."""
        lines = [heading, *(cells for cells, _ in rows)]
        widths = [max(len(cells[column]) for cells in lines) for column in range(len(heading))]
        if sum(widths) + 2 * (len(widths) - 1) > self.columns:
            self._list(heading, rows)
            return
        styles: list[Style] = ["dim", *(style for _, style in rows)]
        for cells, style in zip(lines, styles, strict=True):
            first, *others = (
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            self.text_line("  ".join([first, *others]), style)

    def _list(self, heading: Sequence[str], rows: Sequence[tuple[Sequence[str], Style]]) -> None:
        for (first, *others), style in rows:
            self.text(first, style)
            for name, cell in zip(heading[1:], others, strict=True):
                self.text(f"{name}: {cell}", indent=2)

    def text_line(self, line: str, style: Style = "plain") -> None:
        """Print one line unwrapped, so that its blanks stay."""
        self.end_line()
        self._write(line, style)
        self._write("\n", "plain")
        self._column = 0

    def _write(self, text: str, style: Style) -> None:
        self._column += len(text)
        code = _CODES.get(style)
        self._stream.write(f"\x1b[{code}m{text}\x1b[0m" if code and self._colour and text else text)
        self._stream.flush()
