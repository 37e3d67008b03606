"""
Rows in, one float64 matrix out: by name where rows have names, in manifest order where they do not.

LightGBM takes whatever has the right width, in whatever order, and reads text, None and large integers as numbers. Here
each cell is converted by the manifest's word on its feature, and a cell that does not fit raises `SchemaError`
naming feature and row. Conversion to float64 is exact or refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._engine import cells_of
from predictor._names import NameFinder, names_as_text
from predictor._refusals import ADD_COLUMNS, AS_NUMBER, AS_ROWS, ONE_NAME, SAY_LABELS, by_policy
from predictor._tables import Labelled, columns_of, dense_blocks, is_sparse, is_table, matrix_of, plain
from predictor.errors import SchemaError
from predictor.manifest import Feature, Label, RowPolicy

__all__ = ["RowSchema"]

_EXACT = 2**53  # every whole number up to here is a float64
_JUST_FLOATS, _JUST_NUMBERS = {float}, {float, int}
_UNSEEN = -1.0  # LightGBM sends a negative category the way of every category it did not learn


class RowSchema:
    """The columns a model takes and what to do with a cell that does not fit; safe to share among threads."""

    def __init__(
        self,
        features: Sequence[Feature],
        policy: RowPolicy,
        *,
        ordered: Collection[int] = (),
        unlabelled: Collection[int] = (),
    ) -> None:
        """
        Args:
            features: In model order.
            policy: What to do with a cell that does not fit.
            ordered: Indices of category features whose codes the model reads as plain numbers. There LightGBM
                takes an unseen category for a missing value; a negative code would be a small number.
            unlabelled: Indices of category features of which only LightGBM's codes are known. A category column of
                a frame has labels, which nobody said how to translate; it is refused there.
        """
        self.features = tuple(features)
        self.policy = policy
        self.names = tuple(feature.name for feature in self.features)
        self.width = len(self.names)
        self._get: Callable[[Mapping[str, Any]], Any] = itemgetter(*self.names)
        self._codes: dict[int, dict[Label, float]] = {
            index: dict(zip(feature.categories or (), map(float, feature.codes or ()), strict=True))
            for index, feature in enumerate(self.features)
            if feature.kind == "category"
        }
        self._integers = [i for i, feature in enumerate(self.features) if feature.kind == "integer"]
        self._ordered = frozenset(ordered)
        self._unlabelled = frozenset(unlabelled)
        self._find_names = NameFinder(self.features, policy).find
        self._not_nullable = np.array([not feature.nullable for feature in self.features])
        # A category whose labels are LightGBM's own codes needs no translation, so it can take the short way.
        self._own_codes = {
            index: codes for index, codes in self._codes.items() if all(a == b for a, b in codes.items())
        }
        self.cells = cells_of(
            self.names,
            nullable=[feature.nullable or policy.null == "allow" for feature in self.features],
            whole=self._integers,
            codes=self._codes,
        )
        """Reads rows of plain cells in C, where the extension is built; whatever it does not take is decided here."""
        self._has_short_way = len(self._own_codes) == len(self._codes) and not self._integers

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
            is_table(row) or (isinstance(row, np.ndarray) and row.ndim == 2 and len(row) == 1)
        ):
            return self._one_of_table(row)
        values = self._in_order(row, None)
        if self._has_short_way and self._is_plain(values):
            return values
        numbers = [self._number(index, value, None) for index, value in enumerate(values)]
        checked = self._checked(np.array([numbers], dtype=np.float64), one_row=True)
        return checked[0].tolist() if self._ordered else numbers

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
        Return float64 [n, width] of a column for each feature, by name: lists or one-dimensional arrays.

        Raises:
            SchemaError: As `encode`.
        """
        by_name = names_as_text(list(columns), row=None)
        return self._checked(self._from_columns({text: columns[name] for text, name in by_name.items()}))

    def encode(self, rows: Any) -> NDArray[np.float64]:
        """
        Return float64 [n, width], C-contiguous.

        Args:
            rows: A two-dimensional array; a data frame or Arrow table with named columns; or a sequence of rows as
                `encode_row` takes them. n = 0 is allowed.

        Raises:
            SchemaError: A name, width or cell does not fit; the first such cell in row order is not promised.
        """
        if isinstance(rows, np.ndarray) and rows.dtype.names is None:
            matrix = self._from_array(rows)
        elif (floats := matrix_of(rows, self.names)) is not None:
            matrix = self._from_array(floats)
        elif is_sparse(rows):
            blocks = [self._from_array(block) for block in dense_blocks(rows)]
            matrix = np.concatenate([np.empty((0, self.width)), *blocks])
        elif (columns := columns_of(rows)) is not None:
            matrix = self._from_columns(columns)
        elif isinstance(rows, Mapping):
            raise SchemaError("one mapping is one row", remedy="use predict_row, or pass a list of mappings")
        elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes | bytearray):
            matrix = self._from_rows(rows)
        else:
            raise SchemaError(f"rows of type {type(rows).__name__} are not understood", remedy=AS_ROWS)
        return self._checked(matrix)

    def _is_plain(self, values: Sequence[Any]) -> bool:
        """Whether *values* are numbers that need no conversion and no word from the policy; False is no verdict."""
        types = set(map(type, values))
        if types != _JUST_FLOATS and not (
            types <= _JUST_NUMBERS and max(values) <= _EXACT and min(values) >= -_EXACT
        ):
            return False
        total = sum(values)
        if total - total != 0.0:  # a NaN or an infinity somewhere, or an overflow of the sum itself
            for value, feature in zip(values, self.features, strict=True):
                if not math.isfinite(value) and not (math.isnan(value) and feature.nullable):
                    return False
        for index, codes in self._own_codes.items():
            if values[index] not in codes and not math.isnan(values[index]):
                return False
        return True

    def _in_order(self, row: Any, index: int | None) -> Sequence[Any]:
        kind = type(row)
        if kind is list or kind is tuple:
            values: Sequence[Any] = row
        elif isinstance(row, Mapping):
            if (
                kind is dict and len(row) == self.width
            ):  # another mapping may make up what it lacks (defaultdict)
                try:
                    found: Sequence[Any] = self._get(row) if self.width > 1 else (self._get(row),)
                except KeyError:
                    pass
                else:
                    return found
            return self._by_name(row, index)
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
        """The slow way, which finds out what is wrong."""
        keys = self._find_names(list(row), index)
        return [row[keys[name]] if name in keys else None for name in self.names]

    def _number(self, index: int, value: Any, row: int | None) -> float:
        """Convert one cell by its type; what the number may be is `_checked`'s question."""
        feature = self.features[index]
        if isinstance(value, np.generic):
            # NumPy gives a time in nanoseconds as a plain whole number.
            value = value if value.dtype.kind in "mM" else value.item()
        if value is None or type(value).__name__ == "NAType":  # pandas.NA, without importing pandas
            return math.nan
        if isinstance(value, bool):
            if self.policy.boolean == "refuse":
                raise by_policy("boolean", "is a boolean, not a number", feature=feature.name, row=row)
            value = int(value)
        if index in self._codes:
            return self._code(index, value, row)
        if type(value) is int:
            return self._exact(feature, value, row)
        if isinstance(value, float):
            return float(value)
        raise SchemaError(
            f"is {type(value).__name__}, not a number", remedy=AS_NUMBER, feature=feature.name, row=row
        )

    def _exact(self, feature: Feature, value: int, row: int | None) -> float:
        try:
            number = float(value)
        except OverflowError:
            raise SchemaError(
                "is larger than any float64", remedy="send null", feature=feature.name, row=row
            ) from None
        if number != value and self.policy.large_integer == "refuse":
            reason = f"{value} is not exact as float64"
            raise by_policy("large_integer", reason, feature=feature.name, row=row)
        return number

    def _code(self, index: int, value: Any, row: int | None) -> float:
        feature = self.features[index]
        if not isinstance(value, str | int | float):
            raise SchemaError(
                f"is {type(value).__name__}, not a category",
                remedy=f"send one of the labels, such as {self._shown(index)}",
                feature=feature.name,
                row=row,
            )
        if isinstance(value, float) and math.isnan(value):
            return math.nan
        code = self._codes[index].get(value)
        if code is not None:
            return code
        if index in self._own_codes and index not in self._ordered and _is_negative(value):
            return math.nan  # as LightGBM reads a negative code, such as the -1 of an encoder's unknown
        if self.policy.unseen == "refuse":
            shown = repr(value)[:40]
            reason = f"{shown} is a category that training did not have"
            raise by_policy("unseen", reason, feature=feature.name, row=row)
        if isinstance(value, str) or index not in self._own_codes or index in self._ordered:
            return _UNSEEN
        # Where LightGBM's codes are the labels a number goes on as it is, to be read as Booster.predict reads it.
        return value if isinstance(value, float) else float(value) if abs(value) < _EXACT else _UNSEEN

    def _from_rows(self, rows: Sequence[Any]) -> NDArray[np.float64]:
        matrix = np.empty((len(rows), self.width), dtype=np.float64)
        rows, index = list(rows), 0
        while index < len(rows):
            if self.cells is not None and (index := self.cells.rows(rows, matrix, index)) == len(rows):
                break
            values = self._in_order(rows[index], index)
            if self._has_short_way and self._is_plain(values):
                matrix[index] = values
            else:
                matrix[index] = [self._number(i, value, index) for i, value in enumerate(values)]
            index += 1
        return matrix

    def _from_array(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        rows = plain(rows)
        if rows.ndim != 2:
            raise SchemaError(
                f"rows have two dimensions, this array has {rows.ndim}", remedy="for one row use predict_row"
            )
        if rows.shape[1] != self.width:
            raise SchemaError(f"{rows.shape[1]} columns for {self.width} features", remedy=ADD_COLUMNS)
        if rows.dtype.kind == "f" and rows.dtype.itemsize <= 8 and not self._codes:
            return np.ascontiguousarray(rows, dtype=np.float64)
        return self._from_columns({name: rows[:, index] for index, name in enumerate(self.names)})

    def _from_columns(self, columns: Mapping[str, Any]) -> NDArray[np.float64]:
        keys = self._find_names(list(columns), None)
        sizes = {len(column) for column in columns.values()}
        if len(sizes) != 1:
            raise SchemaError(
                "columns differ in length" if sizes else "a table without columns has no rows",
                remedy="send as many cells for each feature",
            )
        matrix = np.full((sizes.pop(), self.width), math.nan, dtype=np.float64)
        for index, name in enumerate(self.names):
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
                feature=self.names[index],
            )
        if index in self._codes:
            found = self._known_codes(index, column)
            if found is not None:
                return found
        elif isinstance(column, np.ndarray):
            if column.dtype.kind == "f" and column.dtype.itemsize <= 8:
                return column.astype(np.float64)
            if column.dtype.kind in "iu":
                numbers = column.astype(np.float64)
                if column.size == 0 or (column.max() <= _EXACT and column.min() >= -_EXACT):
                    return numbers
        return [self._number(index, value, row) for row, value in enumerate(column)]

    def _known_codes(self, index: int, column: Any) -> NDArray[np.float64] | None:
        """Return the codes of a column of nothing but known labels, or None: then each cell has its own word."""
        codes = self._codes[index]
        if isinstance(column, np.ndarray) and column.dtype.kind in "fiu":
            if index not in self._own_codes or column.dtype.itemsize > 8:
                return None
            cells = column.astype(np.float64)
            if index not in self._ordered:
                cells[(cells <= -1) & np.isfinite(cells)] = math.nan
            known = np.isin(cells, list(codes.values())) | np.isnan(cells)
            return cells if known.all() else None
        values: list[Any] = column.tolist() if isinstance(column, np.ndarray) else list(column)
        # Text is equal to text alone; of equal hash are also True and 1, so other types have the long way.
        if not {str, float, type(None)}.issuperset(map(type, values)):
            return None
        found = [codes.get(cell, _UNSEEN) if type(cell) is str else math.nan for cell in values]
        are_null = all(math.isnan(cell) for cell in values if type(cell) is float)
        return np.array(found) if are_null and _UNSEEN not in found else None

    def _labelled(self, index: int, column: Labelled) -> NDArray[np.float64]:
        """Translate each label once; a label that does not fit matters only where a row has it."""
        if index in self._unlabelled and column.labels != list(range(len(column.labels))):
            raise SchemaError(
                "is a category column, and nobody said which of its labels is which code of the model",
                remedy=SAY_LABELS,
                feature=self.names[index],
            )
        table = np.full(len(column.labels) + 1, math.nan)  # the last is for position -1, null
        used = np.unique(column.positions)
        for position in used[used >= 0].tolist():
            try:
                table[position] = self._number(index, column.labels[position], None)
            except SchemaError as error:
                raise error.at_row(int((column.positions == position).argmax())) from error
        translated: NDArray[np.float64] = table[column.positions]
        return translated

    def _shown(self, index: int) -> str:
        return ", ".join(repr(label)[:20] for label in list(self._codes[index])[:3]) or "none"

    def _checked(self, matrix: NDArray[np.float64], *, one_row: bool = False) -> NDArray[np.float64]:
        """Ask the policy about nulls, infinities and fractions of an encoded matrix, and return it."""
        finite = np.isfinite(matrix)
        if not finite.all():
            nan = np.isnan(matrix)
            if self.policy.null == "refuse":
                self._refuse(nan & self._not_nullable, "null", "is null", one_row)
            if self.policy.infinite == "refuse":
                self._refuse(~finite & ~nan, "infinite", "is infinite", one_row)
        for index in self._integers:
            column = matrix[:, index]
            wrong = np.isfinite(column) & (column != np.floor(column))
            if wrong.any():
                raise SchemaError(
                    "is not a whole number",
                    remedy="leave it out of write_manifest(integers=[...]) if fractions are meant",
                    feature=self.names[index],
                    row=None if one_row else int(wrong.argmax()),
                )
        for index in self._ordered:  # last, because an unseen category is no null to the policy
            matrix[matrix[:, index] == _UNSEEN, index] = math.nan
        return matrix

    def _refuse(self, wrong: NDArray[np.bool_], word: str, reason: str, one_row: bool) -> None:
        if wrong.any():
            row, column = map(int, np.argwhere(wrong)[0])
            raise by_policy(word, reason, feature=self.names[column], row=None if one_row else row)


def _is_negative(value: float | str) -> bool:
    """Whether LightGBM, which cuts fractions off, reads *value* as a negative code."""
    return not isinstance(value, str) and -math.inf < value <= -1


def _once(row: dict[Any, Any], size: int, index: int | None) -> dict[Any, Any]:
    if len(row) != size:
        raise SchemaError("a name is repeated", remedy=ONE_NAME, row=index)
    return row
