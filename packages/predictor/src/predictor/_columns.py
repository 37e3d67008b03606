"""
Converts whole columns and matrices to float64 [n, width].

Plain columns are copied by NumPy or read in C, and judged in C, all at once; what is not plain goes cell by cell, by
`CellRules`, which alone decides.
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
        """Take the extension's *cells* for what is plain, or None."""
        self._rules = rules
        self._cells = cells
        self._take_codes = len(rules.own_codes) == len(rules.codes)  # a number is then its own code

    def plain_matrix(self, rows: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return float *rows* [n, width] as they are, if every cell is plain; None is no verdict."""
        if self._cells is None or not self._take_codes or type(rows) is not np.ndarray:
            return None
        if rows.ndim != 2 or rows.shape[1] != self._rules.width or not _is_float(rows):
            return None
        matrix = np.ascontiguousarray(rows, dtype=np.float64)
        if not matrix.flags.aligned:
            matrix = matrix.copy()
        return matrix if self._cells.plain(matrix) else None

    def plain_columns(self, columns: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """Return *columns* of the features' own names as a matrix, if every cell is plain; None is no verdict."""
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
            if column.dtype.kind in "mMV":  # NumPy's lists of these hold numbers or tuples
                return False
            column = column.tolist()
        elif type(column) is tuple:
            column = list(column)
        return type(column) is list and self._cells.column(column, index, matrix) == len(matrix)

    def matrix(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """
        Return an array [n, width] by the features' rules.

        Raises:
            SchemaError: Another shape, or a cell that does not fit.
        """
        rows = plain(rows)
        if rows.ndim != 2:
            raise SchemaError(
                f"rows have two dimensions, this array has {rows.ndim}", remedy="for one row use predict_row"
            )
        if rows.shape[1] != self._rules.width:
            raise SchemaError(f"{rows.shape[1]} columns for {self._rules.width} features", remedy=ADD_COLUMNS)
        if _is_float(rows) and not self._rules.codes:
            return np.ascontiguousarray(rows, dtype=np.float64)
        names = self._rules.names
        return self.columns(
            {name: rows[:, index] for index, name in enumerate(names)}, dict(zip(names, names, strict=True))
        )

    def columns(self, columns: Mapping[str, Any], keys: Mapping[str, str]) -> NDArray[np.float64]:
        """
        Return *columns* as a matrix; *keys* names the column of each feature that has one.

        Raises:
            SchemaError: Columns of unlike lengths, or a cell that does not fit.
        """
        sizes = {len(column) for column in columns.values()}
        if len(sizes) != 1:
            raise SchemaError(
                "columns differ in length" if sizes else "a table without columns has no rows",
                remedy="send as many cells for each feature",
            )
        matrix = np.full((sizes.pop(), self._rules.width), math.nan, dtype=np.float64)
        for index, name in enumerate(self._rules.names):
            if name in keys:
                matrix[:, index] = self._column(index, columns[keys[name]])
        return matrix

    def _column(self, index: int, column: Any) -> NDArray[np.float64] | list[float]:
        if isinstance(column, Labelled):
            return self._labelled(index, column)
        if getattr(column, "ndim", 1) != 1:
            raise SchemaError(
                "has several values per row",
                remedy="give each a column of its own",
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
        return [self._rules.number(index, value, row) for row, value in enumerate(column)]

    def _known_codes(self, index: int, column: Any) -> NDArray[np.float64] | None:
        """Return the codes of a column of nothing but known labels, or None: then each cell has its own word."""
        codes = self._rules.codes[index]
        if isinstance(column, np.ndarray) and column.dtype.kind in "fiu":
            if index not in self._rules.own_codes or column.dtype.itemsize > 8:
                return None
            cells = column.astype(np.float64)
            if index not in self._rules.ordered:
                cells[(cells <= -1) & np.isfinite(cells)] = math.nan
            known = np.isin(cells, list(codes.values())) | np.isnan(cells)
            return cells if known.all() else None
        values: list[Any] = column.tolist() if isinstance(column, np.ndarray) else list(column)
        # Text is equal to text alone; of equal hash are also True and 1, so other types have the long way.
        if not {str, float, type(None)}.issuperset(map(type, values)):
            return None
        found = [codes.get(cell, UNSEEN) if type(cell) is str else math.nan for cell in values]
        are_null = all(math.isnan(cell) for cell in values if type(cell) is float)
        return np.array(found) if are_null and UNSEEN not in found else None

    def _labelled(self, index: int, column: Labelled) -> NDArray[np.float64]:
        """Translate each label once; a label that does not fit matters only where a row has it."""
        if index in self._rules.unlabelled and column.labels != list(range(len(column.labels))):
            raise SchemaError(
                "is a category column, and nobody said which of its labels is which code of the model",
                remedy=SAY_LABELS,
                feature=self._rules.names[index],
            )
        table = np.full(len(column.labels) + 1, math.nan)  # the last is for position -1, null
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
    """Whether each of these whole numbers is a float64."""
    return whole.size == 0 or bool(whole.max() <= EXACT and whole.min() >= -EXACT)
