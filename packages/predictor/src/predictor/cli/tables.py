"""Rows from and to files: CSV, JSON lines and Parquet, in blocks, so that a file need not fit in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from predictor._refusals import AS_NUMBER
from predictor.errors import PredictorError, SchemaError
from predictor.manifest import Feature

__all__ = ["BLOCK", "Row", "TableError", "read_rows", "writer"]

BLOCK = 8_192  # rows at a time

Row = dict[str, Any]
Writer = Callable[[list[Row]], None]


class TableError(PredictorError):
    """A file of rows cannot be read or written."""


def read_rows(path: Path, features: Sequence[Feature] = ()) -> Iterator[list[Row]]:
    """
    Yield the rows of *path* as mappings, at most `BLOCK` at a time.

    CSV has no types: a cell of a feature in *features* is read by its kind (a label where it is a category, however
    much it looks like a number), other cells as a number where they look like one; an empty cell is None, or the label
    of no letters where the feature has it. JSON lines and Parquet say their types themselves.

    Raises:
        TableError: Unknown suffix, unreadable file, or a line that is no row.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TableError(f"{path.name}: known are {', '.join(sorted(readers))}")
    try:
        yield from reader(path, _Features(features))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path.name} cannot be read: {error}") from error


class _Features(dict[str, Feature]):
    """Features by name; also by a name that has spaces where LightGBM wrote underscores."""

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__((feature.name, feature) for feature in features)

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name) or super().get(name.replace(" ", "_"), default)


def _read_csv(path: Path, features: Mapping[str, Feature]) -> Iterator[list[Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        if len(set(names)) != len(names):
            raise TableError(f"{path.name}: a column name is repeated")
        block: list[Row] = []
        for number, cells in enumerate(reader):
            if len(cells) != len(names):
                raise TableError(
                    f"{path.name}: line {reader.line_num} has {len(cells)} of {len(names)} cells"
                )
            pairs = zip(names, cells, strict=True)
            block.append({name: _cell(cell, name, features.get(name), number) for name, cell in pairs})
            if len(block) == BLOCK:
                yield block
                block = []
        if block:
            yield block


def _cell(text: str, name: str, feature: Feature | None, row: int) -> Any:
    if text == "":
        if feature is None or "" not in (feature.categories or ()):
            return None
        if feature.nullable:
            raise SchemaError(
                "an empty cell may be the label '' or null", remedy="use JSON lines", feature=name, row=row
            )
        return ""
    if feature is not None and feature.kind == "category":
        return _label(text, feature)
    number = _number(text)
    if number is None and feature is not None:
        raise SchemaError(f"{text[:40]!r} is not a number", remedy=AS_NUMBER, feature=name, row=row)
    return text if number is None else number


def _number(text: str) -> int | float | None:
    """Read a number as programs write one: Python would also take `1_0` and other scripts' digits."""
    if "_" in text or not text.isascii():
        return None
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        return None


def _label(text: str, feature: Feature) -> Any:
    """
    Find the label that *text* writes; what is no label goes on as it is, for the policy to judge.

    A number counts as equal, because a column of whole numbers with gaps is often written as 1.0, 2.0.
    """
    labels = feature.categories or ()
    number = _number(text)
    return next(
        (label for label in labels if str(label) == text),
        next((label for label in labels if label == number), text),
    )


def _read_jsonl(path: Path, features: Mapping[str, Feature]) -> Iterator[list[Row]]:  # noqa: ARG001
    with path.open(encoding="utf-8") as file:
        block: list[Row] = []
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_unrepeated)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise TableError(f"{path.name}: line {number} is no JSON object")
            block.append(row)
            if len(block) == BLOCK:
                yield block
                block = []
        if block:
            yield block


def _unrepeated(pairs: list[tuple[str, Any]]) -> Row:
    """Build an object, refusing a name that occurs twice: the reader would not know which value was meant."""
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a name is repeated")
    return row


def _read_parquet(path: Path, features: Mapping[str, Feature]) -> Iterator[list[Row]]:  # noqa: ARG001
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise TableError(
            "Parquet needs the 'parquet' extra: pip install 'lightgbm-predictor[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BLOCK):
                yield batch.to_pylist()
    except pa.ArrowException as error:
        raise TableError(f"{path.name} cannot be read: {error}") from error


@contextmanager
def writer(path: Path | None, out: IO[str], columns: Sequence[str]) -> Iterator[Writer]:
    """
    Open *path* for rows of *columns*, as CSV or JSON lines by its suffix; None writes CSV to *out*.

    The file appears when everything was written; after an error there is no half of it.

    Raises:
        TableError: Another suffix, or the file cannot be written.
    """
    if path is None:
        yield _csv_writer(out, columns)
        return
    if path.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
        raise TableError(f"{path.name}: output is .csv or .jsonl")
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield _csv_writer(file, columns)
            else:
                yield lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        unfinished.replace(path)
    except OSError as error:  # of this file: a pipe on stdout is the caller's to close
        raise TableError(f"{path.name} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _csv_writer(file: IO[str], columns: Sequence[str]) -> Writer:
    table = csv.DictWriter(file, columns, lineterminator="\n")
    table.writeheader()
    return table.writerows
