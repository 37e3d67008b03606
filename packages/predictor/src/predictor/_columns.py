"""
Converts whole columns and matrices to float64 [n, width].

A plain column is copied by NumPy or read in C, and checked in C as a whole. Any other column is converted cell by cell
by `CellRules`, the only place that refuses a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._cell_rules import EXACT, UNSEEN, CellRules
from predictor._refusals import ADD_COLUMNS, SAY_LABELS
from predictor._tables import Labelled, plain
from predictor.errors import SchemaError

__all__ = ["ColumnReader"]


class ColumnReader:
    """Reads columns by one model's rules; safe to share among threads."""

    def __init__(self, rules: CellRules, cells: Any) -> None:
        """Use *cells*, the extension's reader of plain cells, or None without the extension."""
        self._rules = rules
        self._cells = cells
        # Whether the labels of each category are its codes.
        self.takes_codes: bool = len(rules.own_codes) == len(rules.codes)

    def plain_matrix(self, rows: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return float *rows* [n, width] unchanged if every cell is plain; None: `matrix` must check them."""
        if self._cells is None or not self.takes_codes or type(rows) is not np.ndarray:
            return None
        if rows.ndim != 2 or rows.shape[1] != self._rules.width or not _is_float(rows):
            return None
        matrix = np.ascontiguousarray(rows, dtype=np.float64)
        if not matrix.flags.aligned:
            matrix = matrix.copy()
        return matrix if self._cells.plain(matrix) else None

    def plain_columns(self, columns: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """Return *columns*, named as the features are, as a matrix if every cell is plain; None: use `columns`."""
        names = self._rules.names
        if self._cells is None or columns.keys() != set(names):
            return None
        sizes = set(map(len, columns.values()))
        if len(sizes) != 1:
            return None
        matrix = np.empty((sizes.pop(), len(names)), dtype=np.float64)
        for index, name in enumerate(names):
            if not self._fill_plain(index, columns[name], matrix):
                return None
        return matrix if self._cells.plain(matrix) else None

    def _fill_plain(self, index: int, column: Any, matrix: NDArray[np.float64]) -> bool:
        if type(column) is Labelled:
            matrix[:, index] = self._labelled(index, column)
            return True
        if type(column) is np.ndarray and column.ndim == 1:
            is_number = column.dtype.kind in "iuf" and column.dtype.itemsize <= 8
            if is_number and (index not in self._rules.codes or index in self._rules.own_codes):
                matrix[:, index] = column
                return column.dtype.kind == "f" or column.dtype.itemsize < 8 or _is_exact(column)
            if column.dtype.kind == "b" and self._takes_booleans(index):
                matrix[:, index] = column
                return True
            if column.dtype.kind in "mMV":  # tolist() would turn times into numbers and records into tuples
                return False
            column = column.tolist()
        elif type(column) is tuple:
            column = list(column)
        return type(column) is list and (
            self._cells.column(column, index, matrix) == len(matrix)
            or self._fill_booleans(index, column, matrix)
        )

    def _fill_booleans(self, index: int, column: list[Any], matrix: NDArray[np.float64]) -> bool:
        """Fill in a column of nothing but True, False and None, if the policy reads them as numbers."""
        if not self._takes_booleans(index) or not {bool, type(None)}.issuperset(map(type, column)):
            return False
        matrix[:, index] = [math.nan if cell is None else cell for cell in column]
        return True

    def matrix(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """
        Convert *rows* by the features' rules to float64 [n, width].

        Raises:
            SchemaError: The shape is wrong, or a cell does not fit.
        """
        rows = plain(rows)
        if rows.ndim != 2:
            raise SchemaError(
                f"rows need an array of two dimensions, this one has {rows.ndim}",
                remedy="for one row use predict_row",
            )
        if rows.shape[1] != self._rules.width:
            raise SchemaError(f"{rows.shape[1]} columns for {self._rules.width} features", remedy=ADD_COLUMNS)
        if _is_float(rows) and not self._rules.codes:
            return np.ascontiguousarray(rows, dtype=np.float64)
        names = self._rules.names
        columns = {name: rows[:, index] for index, name in enumerate(names)}
        matrix = self.plain_columns(columns)
        return self.columns(columns, dict(zip(names, names, strict=True))) if matrix is None else matrix

    def columns(self, columns: Mapping[str, Any], keys: Mapping[str, str]) -> NDArray[np.float64]:
        """
        Return *columns* as a matrix; *keys* maps each feature that is present to the name of its column.

        Raises:
            SchemaError: The columns differ in length, or a cell does not fit.
        """
        sizes = {len(column) for column in columns.values()}
        if len(sizes) != 1:
            raise SchemaError(
                "columns differ in length" if sizes else "a table without columns has no rows",
                remedy="send the same number of cells for each feature",
            )
        matrix = np.full((sizes.pop(), self._rules.width), math.nan, dtype=np.float64)
        for index, name in enumerate(self._rules.names):
            if name not in keys:
                continue
            column = columns[keys[name]]
            is_number = index not in self._rules.codes
            if not (self._cells is not None and is_number and self._fill_plain(index, column, matrix)):
                matrix[:, index] = self._column(index, column)
        return matrix

    def _column(self, index: int, column: Any) -> NDArray[np.float64] | list[float]:
        if isinstance(column, Labelled):
            return self._labelled(index, column)
        if getattr(column, "ndim", 1) != 1:
            raise SchemaError(
                "has several values per row",
                remedy="put each value in a column of its own",
                feature=self._rules.names[index],
            )
        if index in self._rules.codes:
            found = self._known_codes(index, column)
            if found is not None:
                return found
        elif isinstance(column, np.ndarray):
            if _is_float(column):
                return column.astype(np.float64)
            if column.dtype.kind in "iu" and _is_exact(column):
                return column.astype(np.float64)
            if column.dtype.kind == "b" and self._takes_booleans(index):
                return column.astype(np.float64)
        return [self._rules.number(index, value, row) for row, value in enumerate(column)]

    def _takes_booleans(self, index: int) -> bool:
        return index not in self._rules.codes and self._rules.policy.boolean == "number"

    def _known_codes(self, index: int, column: Any) -> NDArray[np.float64] | None:
        """Return the codes of a column that has only known labels and nulls; None: convert it cell by cell."""
        codes = self._rules.codes[index]
        if isinstance(column, np.ndarray) and column.dtype.kind in "fiu":
            if index not in self._rules.own_codes or column.dtype.itemsize > 8:
                return None
            cells = column.astype(np.float64)
            if self._rules.drops_negative(index):
                cells[(cells <= -1) & np.isfinite(cells)] = math.nan
            known = np.isin(cells, list(codes.values())) | np.isnan(cells)
            return cells if known.all() else None
        values: list[Any] = column.tolist() if isinstance(column, np.ndarray) else list(column)
        # A lookup of text finds only text. True would also find the label 1, so other types go cell by cell.
        if not {str, float, type(None)}.issuperset(map(type, values)):
            return None
        found = [codes.get(cell, UNSEEN) if type(cell) is str else math.nan for cell in values]
        are_null = all(math.isnan(cell) for cell in values if type(cell) is float)
        return np.array(found) if are_null and UNSEEN not in found else None

    def _labelled(self, index: int, column: Labelled) -> NDArray[np.float64]:
        """Translate each label once; a label that does not fit is refused only if some row has it."""
        if index in self._rules.unlabelled and column.labels != list(range(len(column.labels))):
            raise SchemaError(
                "is a category column, and the code of each label is not known",
                remedy=SAY_LABELS,
                feature=self._rules.names[index],
            )
        table = np.full(len(column.labels) + 1, math.nan)  # the last entry is for position -1: null
        used = np.unique(column.positions)
        for position in used[used >= 0].tolist():
            try:
                table[position] = self._rules.number(index, column.labels[position], None)
            except SchemaError as error:
                raise error.at_row(int((column.positions == position).argmax())) from error
        translated: NDArray[np.float64] = table[column.positions]
        return translated


def _is_float(values: NDArray[Any]) -> bool:
    return values.dtype.kind == "f" and values.dtype.itemsize <= 8


def _is_exact(whole: NDArray[Any]) -> bool:
    """Whether float64 holds each of these whole numbers exactly."""
    return whole.size == 0 or bool(whole.max() <= EXACT and whole.min() >= -EXACT)
