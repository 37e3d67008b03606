"""Reads the cells of CSV, which has no types: column by column, because most columns are plain or repeat themselves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._cell_rules import EXACT
from predictor._refusals import AS_NUMBER
from predictor.errors import SchemaError
from predictor.manifest import Feature

__all__ = ["CellTable", "read_column"]

Column = NDArray[np.float64] | NDArray[np.bool_] | list[Any]


@dataclass(frozen=True, slots=True)
class _Cells:
    """One column."""

    values: Column

    def to_pylist(self) -> list[Any]:
        if isinstance(self.values, list):
            return self.values
        cells = self.values.tolist()
        return [None if cell != cell else cell for cell in cells] if np.isnan(self.values).any() else cells  # noqa: PLR0124

    def to_numpy(self) -> NDArray[Any]:
        if isinstance(self.values, list):
            raise TypeError("the cells are of several kinds")
        return self.values


class CellTable:
    """Columns by name, with as much of the interface of an Arrow table as its readers use."""

    def __init__(self, columns: Mapping[str, Column], size: int) -> None:
        self._columns, self._size = dict(columns), size

    def __len__(self) -> int:
        return self._size

    @property
    def column_names(self) -> list[str]:
        """The names, in the order of the file."""
        return list(self._columns)

    def column(self, name: str) -> _Cells:
        """Return one column; `KeyError` where there is none."""
        return _Cells(self._columns[name])

    def drop_columns(self, names: Collection[str]) -> CellTable:
        """Return the table without the columns *names*."""
        kept = {name: column for name, column in self._columns.items() if name not in names}
        return CellTable(kept, self._size)

    def take(self, chosen: NDArray[np.intp]) -> CellTable:
        """Return the rows *chosen*."""
        return CellTable(
            {
                name: [column[index] for index in chosen] if isinstance(column, list) else column[chosen]
                for name, column in self._columns.items()
            },
            len(chosen),
        )

    def to_pylist(self) -> list[dict[str, Any]]:
        """Return each row as a mapping."""
        if not self._columns:
            return [{} for _ in range(self._size)]
        columns = (self.column(name).to_pylist() for name in self._columns)
        return [dict(zip(self._columns, cells, strict=True)) for cells in zip(*columns, strict=True)]


def read_column(cells: Sequence[str], name: str, feature: Feature | None, first: int) -> Column:
    """
    Return the values of the texts *cells*, as `read_rows` says.

    Args:
        cells: The column *name*.
        name: What an error calls the column.
        feature: What the column holds; None where it is no feature.
        first: The row of the file that the first cell is in.

    Raises:
        SchemaError: A cell is no number, or no label.
    """
    is_number = feature is not None and feature.kind != "category"
    if is_number and (numbers := _plain_numbers(cells)) is not None:
        return numbers
    values: dict[str, Any] = {}
    for text in dict.fromkeys(cells):
        try:
            values[text] = _cell(text, name, feature)
        except SchemaError as error:
            raise error.at_row(first + cells.index(text)) from error
    column = [values[text] for text in cells]
    return np.array(column) if is_number and set(map(type, values.values())) == {bool} else column


def _plain_numbers(cells: Sequence[str]) -> NDArray[np.float64] | None:
    """
    Return numbers, an empty cell as NaN, where float64 holds each as it is written; None is no verdict.

    Not plain are numbers that only Python reads as such, minus zero (which is zero as a whole number), and those that
    may be larger than a float64 holds.
    """
    joined = "".join(cells)
    if "_" in joined or not joined.isascii():
        return None
    try:
        numbers = np.array([float(text) if text else math.nan for text in cells])
    except ValueError:
        return None
    is_large, is_minus_zero = np.abs(numbers) >= EXACT, (numbers == 0) & np.signbit(numbers)
    return None if is_large.any() or is_minus_zero.any() else numbers


def _cell(text: str, name: str, feature: Feature | None) -> Any:
    if text == "":
        if feature is None or "" not in (feature.categories or ()):
            return None
        if feature.nullable:
            raise SchemaError(
                "an empty cell can be the label '' or null", remedy="use JSON lines", feature=name
            )
        return ""
    if feature is not None and feature.kind == "category":
        return _label(text, feature)
    number = _number(text)
    if number is None and feature is not None:
        if text.lower() in ("true", "false"):  # pandas writes booleans so
            return text.lower() == "true"
        raise SchemaError(f"{text[:40]!r} is not a number", remedy=AS_NUMBER, feature=name)
    return text if number is None else number


def _number(text: str) -> int | float | None:
    """Return the number that *text* is, or None; unlike Python, refuse `1_0` and digits that are not ASCII."""
    if "_" in text or not text.isascii():
        return None
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        return None


def _label(text: str, feature: Feature) -> Any:
    """
    Return the label that *text* means. If it is none, return what a cell of Python would be; the policy decides.

    `2.0` means the label 2, because a column of whole numbers with nulls is often written so. Where all labels are
    numbers, -1 or nan may be a missing value, and pandas writes the labels 1 and 0 of booleans as True and False.

    Raises:
        SchemaError: *text* may be a number or text, and both are labels.
    """
    labels = feature.categories or ()
    same = [label for label in labels if str(label) == text]
    if len(same) > 1:
        raise SchemaError(
            f"{text[:40]!r} can be the label {same[0]!r} or {same[1]!r}",
            remedy="use JSON lines or Parquet",
            feature=feature.name,
        )
    number = _number(text)
    same += [label for label in labels if label == number]
    if same:
        return same[0]
    if any(isinstance(label, str) for label in labels):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text if number is None else number
