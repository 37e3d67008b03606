"""
Turns rows into one float64 matrix: by name if the rows have names, else in the manifest's order.

LightGBM accepts any row of the right width, with columns in any order, and reads text, None and large integers as
numbers. Here each cell is converted by the manifest's entry for its feature. A cell that does not fit raises
`SchemaError` with feature and row. Conversion to float64 is exact or refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._cell_rules import EXACT, UNSEEN, CellRules
from predictor._columns import ColumnReader
from predictor._engine import cells_of
from predictor._names import NameFinder, names_as_text
from predictor._refusals import ADD_COLUMNS, AS_ROWS, ONE_NAME, by_policy
from predictor._tables import columns_of, dense_blocks, is_sparse, is_table, matrix_of
from predictor.errors import SchemaError
from predictor.manifest import Feature, RowPolicy

__all__ = ["RowSchema"]

_JUST_FLOATS, _JUST_NUMBERS = {float}, {float, int}


class RowSchema:
    """The features of a model, and what to do with a cell that does not fit; safe to share among threads."""

    def __init__(
        self,
        features: Sequence[Feature],
        policy: RowPolicy,
        *,
        ordered: Collection[int] = (),
        as_numbers: Collection[int] = (),
        unlabelled: Collection[int] = (),
    ) -> None:
        """
        Args:
            features: In model order.
            policy: What to do with a cell that does not fit.
            ordered: Indices of category features whose codes the model reads as plain numbers. For these, LightGBM's
                package passes an unseen category as a missing value; a negative code would count as a small number.
            as_numbers: Indices of category features whose labels are numbers that the model also reads as numbers.
                There an unseen one is passed as it is.
            unlabelled: Indices of category features of which only LightGBM's codes are known. A category column of a
                data frame is refused there, because the code of each of its labels is not known.
        """
        self._rules = rules = CellRules(
            features, policy, ordered=ordered, as_numbers=as_numbers, unlabelled=unlabelled
        )
        self.features: tuple[Feature, ...] = rules.features
        self.policy: RowPolicy = policy
        self.names: tuple[str, ...] = rules.names
        self.width: int = rules.width
        self._get: Callable[[Mapping[str, Any]], Any] = itemgetter(*self.names)
        self._find_names = NameFinder(self.features, policy).find
        self._not_nullable = np.array([not feature.nullable for feature in self.features])
        self.cells: Any = cells_of(
            self.names,
            nullable=[feature.nullable or policy.null == "allow" for feature in self.features],
            infinite=policy.infinite == "allow",
            whole=rules.integers,
            codes=rules.codes,
        )
        """The extension's reader of plain cells, or None without it; all other cells are read in this module."""
        self._columns = ColumnReader(rules, self.cells)
        self.takes_codes: bool = self._columns.takes_codes
        """Whether the numbers of an array are the codes of its categories: true unless labels are other than codes."""
        self._has_short_way = self.takes_codes and not rules.integers

    def encode_row(self, row: Any) -> Sequence[float]:
        """
        Return one row's numbers in model order.

        Args:
            row: A mapping or named tuple by name, a sequence in manifest order, a one-dimensional array, or a table
                or array of one row.

        Raises:
            SchemaError: A name or cell does not fit.
        """
        if type(row) not in (dict, list, tuple) and (
            is_table(row)
            or is_sparse(row)
            or (isinstance(row, np.ndarray) and row.ndim == 2 and len(row) == 1)
        ):
            return self._one_of_table(row)
        values = self._in_order(row, None)
        if self._has_short_way and self._is_plain(values):
            return values
        numbers = [self._rules.number(index, value, None) for index, value in enumerate(values)]
        checked = self._checked(np.array([numbers], dtype=np.float64), one_row=True)
        return checked[0].tolist() if self._rules.ordered else numbers

    def _one_of_table(self, rows: Any) -> list[float]:
        try:
            matrix = self.encode(rows)
        except SchemaError as error:
            raise error.at_row(None) from error
        if len(matrix) != 1:
            raise SchemaError(
                f"a table of {len(matrix)} rows is not one row", remedy="use predict for many rows"
            )
        one: list[float] = matrix[0].tolist()
        return one

    def encode_columns(self, columns: Mapping[Any, Sequence[Any]]) -> NDArray[np.float64]:
        """
        Return float64 [n, width] for columns by name, each a list or a one-dimensional array.

        Raises:
            SchemaError: As `encode`.
        """
        by_name = names_as_text(list(columns), row=None)
        return self._from_columns({text: columns[name] for text, name in by_name.items()})

    def encode(self, rows: Any) -> NDArray[np.float64]:
        """
        Return float64 [n, width], C-contiguous.

        Args:
            rows: A two-dimensional array; a data frame or Arrow table with named columns; or a sequence of rows as
                `encode_row` takes them. n = 0 is allowed.

        Raises:
            SchemaError: A name, width or cell does not fit. If several do not, it may name any one of them.
        """
        if isinstance(rows, np.ndarray) and (rows.dtype.names is None or rows.ndim == 0):
            return self._from_array(rows)
        if (floats := matrix_of(rows, self.names)) is not None:
            return self._from_array(floats)
        if is_sparse(rows):
            blocks = [self._from_array(block) for block in dense_blocks(rows)]
            return np.concatenate([np.empty((0, self.width)), *blocks])
        if (columns := columns_of(rows)) is not None:
            return self._from_columns(columns)
        if isinstance(rows, Mapping):
            raise SchemaError(
                "one mapping is one row, not many", remedy="pass a list, [row], or use predict_row"
            )
        if isinstance(rows, Sequence) and not isinstance(rows, str | bytes | bytearray):
            return self._from_rows(rows)
        raise SchemaError(f"rows of type {type(rows).__name__} are not understood", remedy=AS_ROWS)

    def _from_array(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        matrix = self._columns.plain_matrix(rows)
        return self._checked(self._columns.matrix(rows)) if matrix is None else matrix

    def _from_columns(self, columns: Mapping[str, Any]) -> NDArray[np.float64]:
        matrix = self._columns.plain_columns(columns)
        if matrix is None:
            keys = self._find_names(list(columns), None)
            matrix = self._checked(self._columns.columns(columns, keys))
        return matrix

    def _from_rows(self, rows: Sequence[Any]) -> NDArray[np.float64]:
        matrix = np.empty((len(rows), self.width), dtype=np.float64)
        rows, index = list(rows), 0
        while index < len(rows):
            if self.cells is not None:
                start, index = index, self.cells.rows(rows, matrix, index)
                if start == 0 and index == len(rows):
                    return matrix  # plain from the first to the last
                if index == len(rows):
                    break
            values = self._in_order(rows[index], index)
            if self._has_short_way and self._is_plain(values):
                matrix[index] = values
            else:
                matrix[index] = [self._rules.number(i, value, index) for i, value in enumerate(values)]
            index += 1
        return self._checked(matrix)

    def _is_plain(self, values: Sequence[Any]) -> bool:
        """Whether *values* are certainly numbers that need no conversion and no policy; False: check each cell."""
        types = set(map(type, values))
        if types != _JUST_FLOATS and not (
            types <= _JUST_NUMBERS and max(values) <= EXACT and min(values) >= -EXACT
        ):
            return False
        total = sum(values)
        if total - total != 0.0:  # some value is NaN or infinite, or the sum overflowed
            for value, feature in zip(values, self.features, strict=True):
                if not math.isfinite(value) and not (math.isnan(value) and feature.nullable):
                    return False
        for index, codes in self._rules.own_codes.items():
            if values[index] not in codes and not math.isnan(values[index]):
                return False
        return True

    def _in_order(self, row: Any, index: int | None) -> Sequence[Any]:
        kind = type(row)
        if kind is list or kind is tuple:
            values: Sequence[Any] = row
        elif isinstance(row, Mapping):
            # Only a plain dict: a defaultdict would invent values for missing names.
            if kind is dict and len(row) == self.width:
                try:
                    found: Sequence[Any] = self._get(row) if self.width > 1 else (self._get(row),)
                except KeyError:
                    pass
                else:
                    return found
            return self._by_name(row, index)
        elif isinstance(row, np.ndarray) and row.ndim == 0 and isinstance(row[()], np.void):  # one record
            return self._in_order(row[()], index)
        elif isinstance(row, np.ndarray):
            if row.ndim != 1:
                raise SchemaError(
                    f"one row has one dimension, this array has {row.ndim}",
                    remedy="use predict for many rows",
                    row=index,
                )
            values = list(row) if row.dtype.kind in "mM" else row.tolist()
        elif isinstance(row, np.void) and row.dtype.names is not None:  # a row of a record array
            return self._by_name({name: row[name] for name in row.dtype.names}, index)
        elif hasattr(row, "_asdict"):  # a named tuple
            return self._in_order(_once(row._asdict(), len(row), index), index)
        elif isinstance(row, Sequence) and hasattr(row, "keys"):  # sqlite3.Row
            return self._in_order(_once(dict(zip(row.keys(), row, strict=True)), len(row), index), index)
        elif isinstance(row, Sequence) and not isinstance(row, str | bytes | bytearray):
            values = list(row)
        elif hasattr(row, "to_dict") and hasattr(row, "index"):  # a row of a pandas frame
            return self._in_order(_once(row.to_dict(), len(row), index), index)
        elif hasattr(row, "to_pylist") or hasattr(row, "to_list"):  # values without names: Arrow, Polars
            values = row.to_pylist() if hasattr(row, "to_pylist") else row.to_list()
        else:
            raise SchemaError(f"a row of type {kind.__name__} is not understood", remedy=AS_ROWS, row=index)
        if len(values) != self.width:
            raise SchemaError(
                f"{len(values)} values for {self.width} features", remedy=ADD_COLUMNS, row=index
            )
        return values

    def _by_name(self, row: Mapping[Any, Any], index: int | None) -> list[Any]:
        """Return the row's values in model order, or raise an error that says which name is wrong."""
        keys = self._find_names(list(row), index)
        return [row[keys[name]] if name in keys else None for name in self.names]

    def _checked(self, matrix: NDArray[np.float64], *, one_row: bool = False) -> NDArray[np.float64]:
        """Check nulls, infinities and fractions of an encoded matrix by the policy, and return it."""
        finite = np.isfinite(matrix)
        if not finite.all():
            nan = np.isnan(matrix)
            if self.policy.null == "refuse":
                self._refuse(nan & self._not_nullable, "null", "is null", one_row)
            if self.policy.infinite == "refuse":
                self._refuse(~finite & ~nan, "infinite", "is infinite", one_row)
        for index in self._rules.integers:
            column = matrix[:, index]
            wrong = np.isfinite(column) & (column != np.floor(column))
            if wrong.any():
                raise SchemaError(
                    "is not a whole number",
                    remedy="send one, or remove the feature from write_manifest(integers=[...])",
                    feature=self.names[index],
                    row=None if one_row else int(wrong.argmax()),
                )
        for index in self._rules.ordered:  # last, so that the policy for nulls does not see unseen categories
            matrix[matrix[:, index] == UNSEEN, index] = math.nan
        return matrix

    def _refuse(self, wrong: NDArray[np.bool_], word: str, reason: str, one_row: bool) -> None:
        if wrong.any():
            row, column = map(int, np.argwhere(wrong)[0])
            raise by_policy(word, reason, feature=self.names[column], row=None if one_row else row)


def _once(row: dict[Any, Any], size: int, index: int | None) -> dict[Any, Any]:
    if len(row) != size:
        raise SchemaError("a name is repeated", remedy=ONE_NAME, row=index)
    return row
