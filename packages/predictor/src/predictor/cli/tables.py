"""Reads rows from CSV, JSON lines and Parquet in blocks, so that the file may be larger than memory."""

from __future__ import annotations

import csv
import json
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

from predictor.cli.cells import CellTable, read_column
from predictor.errors import PredictorError
from predictor.manifest import Feature

__all__ = [
    "BLOCK",
    "STDIN",
    "Piece",
    "Row",
    "TableError",
    "files_of",
    "import_pyarrow",
    "read_pieces",
    "read_rows",
]

BLOCK = 8_192  # rows at a time
STDIN = Path("-")  # CSV or JSON lines on standard input

Row = dict[str, Any]


class TableError(PredictorError):
    """A file of rows cannot be read or written."""


class Piece(Protocol):
    """Some rows of a file, not yet parsed; it can be pickled."""

    @property
    def first(self) -> int:
        """The number of its first row in the file, from 0."""

    @property
    def size(self) -> int:
        """The number of rows."""

    @property
    def read_bytes(self) -> int:
        """About how many bytes of the file were read; 0 for a pipe."""

    def rows(self, features: Sequence[Feature], names: Collection[str] | None = None) -> Any:
        """
        Return the rows, each as a mapping, or all as a table like Arrow's.

        Args:
            features: The features by which the cells of CSV are read.
            names: The columns to return; a column's name may have spaces for underscores. Default: all columns.

        Raises:
            TableError, SchemaError: A line is not a row, or a cell is not a number; the row number is that in the file.
        """
        ...


def read_pieces(path: Path) -> Iterator[Piece]:
    """
    Return the rows of *path* in pieces of at most `BLOCK`. A folder's files are read in the order of their names;
    `STDIN` is CSV or JSON lines from a pipe.

    The row numbers of a folder go on from file to file.

    Raises:
        TableError: At once: the suffix is unknown, there is no such file, or a folder has none. While reading: a file
            cannot be read, or a line is not a row.
    """
    files = files_of(path)
    return _read(files[0]) if files == [path] else _read_all(files)


def files_of(path: Path) -> list[Path]:
    """
    Return *path* itself, or the files of rows in a folder, without those whose names begin with `.` or `_`.

    `STDIN` is one too.

    Raises:
        TableError: There is no such file, or its suffix is unknown.
    """
    known = ", ".join(sorted(_READERS))
    if path == STDIN:
        return [path]
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _READERS]
        if not (files := [file for file in found if not file.name.startswith((".", "_"))]):
            raise TableError(f"the folder {path.name} holds no file of rows; the known suffixes are {known}")
        return files
    if path.suffix.lower() not in _READERS:
        raise TableError(
            f"{path.name}: the known suffixes are {known}; or pass a folder of such files, or - for CSV or JSON lines"
            " on stdin"
        )
    if not path.exists():
        raise TableError(f"{path} cannot be read: No such file or directory")
    return [path]


def _read_all(files: Sequence[Path]) -> Iterator[Piece]:
    first = read_bytes = 0
    for file in files:
        rows = 0
        for piece in _read(file):
            rows = piece.first + piece.size
            yield replace(piece, first=first + piece.first, read_bytes=read_bytes + piece.read_bytes)
        first, read_bytes = first + rows, read_bytes + file.stat().st_size


def _read(path: Path) -> Iterator[_AnyPiece]:
    try:
        yield from _reader(path)(path)
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path.name} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save it again as UTF-8"
        ) from error
    except (OSError, csv.Error) as error:
        raise TableError(f"{path.name} cannot be read: {error}") from error


def _reader(path: Path) -> Callable[[Path], Iterator[_AnyPiece]]:
    if path != STDIN:
        return _READERS[path.suffix.lower()]
    stdin: Any = sys.stdin.buffer  # a BufferedReader, which can look ahead
    is_json = stdin.peek(1).removeprefix(BOM_UTF8).startswith(b"{")
    return _read_jsonl if is_json else _read_csv


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIOWrapper]:
    if path != STDIN:
        with path.open(encoding=encoding, newline="") as file:
            yield file
        return
    file = TextIOWrapper(sys.stdin.buffer, encoding=encoding, newline="")
    try:
        yield file
    finally:
        file.detach()  # closing it would close the process's own


def read_rows(path: Path, features: Sequence[Feature] = ()) -> Iterator[list[Row]]:
    """
    Yield the rows of *path* as mappings, at most `BLOCK` at a time.

    JSON lines and Parquet have types; CSV does not. In CSV, a cell of a category in *features* is a label, even if it
    looks like a number; a cell of another feature is a number, or True or False. A cell of any other column is a number
    if it looks like one, else text. An empty cell is None, or the label "" if the feature has that label.

    Raises:
        TableError: The suffix is unknown, the file cannot be read, or a line is not a row.
    """
    for piece in read_pieces(path):
        rows = piece.rows(features)
        yield rows if isinstance(rows, list) else rows.to_pylist()


def _is_wanted(name: str, names: Collection[str] | None) -> bool:
    return names is None or name in names or name.replace(" ", "_") in names


class _Features(dict[str, Feature]):
    """Features by name; also found by a name that has spaces where LightGBM wrote underscores."""

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__((feature.name, feature) for feature in features)

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name) or super().get(name.replace(" ", "_"), default)


@dataclass(frozen=True, slots=True)
class _CsvPiece:
    names: list[str]
    cells: list[list[str]]
    first: int
    read_bytes: int

    @property
    def size(self) -> int:
        return len(self.cells)

    def rows(self, features: Sequence[Feature], names: Collection[str] | None = None) -> CellTable:
        known = _Features(features)
        return CellTable(
            {
                name: read_column([cells[index] for cells in self.cells], name, known.get(name), self.first)
                for index, name in enumerate(self.names)
                if _is_wanted(name, names)
            },
            len(self.cells),
        )


def _read_csv(path: Path) -> Iterator[_CsvPiece]:
    with _opened(path, "utf-8-sig") as file:
        # Not strict, a quote that is never closed would take the rest of the file as one cell.
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        if not names:
            raise TableError(f"{path.name} is empty: its first line names the columns")
        _refuse_repeated(names, path.name)
        for separator in (";", "\t"):
            if len(names) == 1 and separator in names[0]:
                raise TableError(f"{path.name}: columns are separated by {separator!r}; write it with commas")
        first, block = 0, list[list[str]]()
        for cells in reader:
            if len(cells) != len(names):
                raise TableError(
                    f"{path.name}: line {reader.line_num} has {len(cells)} cells, the first line names {len(names)}"
                    " columns"
                )
            block.append(cells)
            if len(block) == BLOCK:
                yield _CsvPiece(names, block, first, _position(file))
                first, block = first + BLOCK, []
        if block:
            yield _CsvPiece(names, block, first, _position(file))


def _refuse_repeated(names: Sequence[str], source: str) -> None:
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise TableError(f"{source}: the column name {repeated[:80]!r} is repeated")


def _position(file: TextIOWrapper) -> int:
    """Return how many bytes of *file* were read, or 0 for a pipe; `file.tell()` fails during iteration over lines."""
    return os.lseek(file.fileno(), 0, os.SEEK_CUR) if file.seekable() else 0


@dataclass(frozen=True, slots=True)
class _JsonPiece:
    path: Path
    lines: list[tuple[int, str]]  # each with its number in the file
    first: int
    read_bytes: int

    @property
    def size(self) -> int:
        return len(self.lines)

    def rows(self, features: Sequence[Feature], names: Collection[str] | None = None) -> list[Row]:  # noqa: ARG002
        return [self._row(number, line, names) for number, line in self.lines]

    def _row(self, number: int, line: str, names: Collection[str] | None) -> Row:
        try:
            row = json.loads(line, object_pairs_hook=_unrepeated)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise TableError(f"{self.path.name}: line {number} is not a JSON object, or repeats a name")
        return {name: cell for name, cell in row.items() if _is_wanted(name, names)}


def _read_jsonl(path: Path) -> Iterator[_JsonPiece]:
    with _opened(path, "utf-8-sig") as file:
        first, block = 0, list[tuple[int, str]]()
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            block.append((number, line))
            if len(block) == BLOCK:
                yield _JsonPiece(path, block, first, _position(file))
                first, block = first + BLOCK, []
        if block:
            yield _JsonPiece(path, block, first, _position(file))


def _unrepeated(pairs: list[tuple[str, Any]]) -> Row:
    """Return *pairs* as a dict; refuse a name that occurs twice, because it is not clear which value is meant."""
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a name is repeated")
    return row


@dataclass(frozen=True, slots=True)
class _ArrowPiece:
    table: Any
    first: int
    read_bytes: int

    @property
    def size(self) -> int:
        return len(self.table)

    def rows(self, features: Sequence[Feature], names: Collection[str] | None = None) -> Any:  # noqa: ARG002
        wanted = [name for name in self.table.column_names if _is_wanted(name, names)]
        _refuse_repeated(wanted, "the Parquet file")
        return self.table.select(wanted)


def _read_parquet(path: Path) -> Iterator[_ArrowPiece]:
    pa, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            first, size, total = 0, path.stat().st_size, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(BLOCK):
                yield _ArrowPiece(pa.Table.from_batches([batch]), first, size * (first + len(batch)) // total)
                first += len(batch)
    except pa.ArrowException as error:
        raise TableError(f"{path.name} cannot be read: {error}") from error


_AnyPiece = _CsvPiece | _JsonPiece | _ArrowPiece
_READERS: dict[str, Callable[[Path], Iterator[_AnyPiece]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


def import_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet, or raise a `TableError` that names the extra to install."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise TableError(
            "Parquet needs the 'parquet' extra: pip install 'lightgbm-predictor[parquet]'"
        ) from error
    return pa, parquet
