"""Writes rows to CSV, JSON lines and Parquet, block by block; the file appears only when it is complete."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from predictor.cli.tables import Row, TableError, import_pyarrow

__all__ = ["Writer", "require_folder", "writer"]

Writer = Callable[[list[Row]], None]


def require_folder(path: Path) -> None:
    """Raise `TableError` if the folder of *path* does not exist."""
    if not path.parent.is_dir():
        raise TableError(f"{path} cannot be written: there is no folder {str(path.parent)!r}; make it first")


@contextmanager
def writer(path: Path | None, out: IO[str], columns: Mapping[str, type]) -> Iterator[Writer]:
    """
    Open *path* for rows of *columns*, as CSV, JSON lines or Parquet by its suffix; None writes CSV to *out*.

    Rows go to a temporary file, which gets its name when all are written, and is deleted after an error.

    Raises:
        TableError: The suffix is unknown, or the file cannot be written.
    """
    if path is None:
        yield _csv_writer(out, columns)
        return
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".ndjson", ".parquet"):
        raise TableError(f"{path.name}: the output must be .csv, .jsonl or .parquet")
    require_folder(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if suffix == ".parquet":
            with _parquet_writer(unfinished, columns) as write:
                yield write
        else:
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                yield _csv_writer(file, columns) if suffix == ".csv" else _json_writer(file)
        unfinished.replace(path)
    except OSError as error:  # of this file; an error of stdout is left to the caller
        raise TableError(f"{path.name} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _csv_writer(file: IO[str], columns: Mapping[str, type]) -> Writer:
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns)
    return lambda rows: table.writerows([row[name] for name in columns] for row in rows)


def _json_writer(file: IO[str]) -> Writer:
    return lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def _parquet_writer(path: Path, columns: Mapping[str, type]) -> Iterator[Writer]:
    pa, parquet = import_pyarrow()
    types = {float: pa.float64(), int: pa.int64(), str: pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    with parquet.ParquetWriter(path, schema) as file:

        def write(rows: list[Row]) -> None:
            cells = {name: [kind(row[name]) for row in rows] for name, kind in columns.items()}
            file.write_table(pa.table(cells, schema))

        yield write
