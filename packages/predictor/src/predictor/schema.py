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

from predictor._tables import columns_of, matrix_of, plain
from predictor.errors import SchemaError
from predictor.manifest import Feature, Label, RowPolicy

__all__ = ["RowSchema"]

_EXACT = 2**53  # every whole number up to here is a float64
_JUST_FLOATS, _JUST_NUMBERS = {float}, {float, int}
_UNSEEN = -1.0  # LightGBM sends a negative category the way of every category it did not learn


class RowSchema:
    """The columns a model takes and what to do with a cell that does not fit; safe to share among threads."""

    def __init__(
        self, features: Sequence[Feature], policy: RowPolicy, *, ordered: Collection[int] = ()
    ) -> None:
        """
        Args:
            features: In model order.
            policy: What to do with a cell that does not fit.
            ordered: Indices of category features whose codes the model reads as plain numbers. There LightGBM
                takes an unseen category for a missing value; a negative code would be a small number.
        """
        self.features = tuple(features)
        self.policy = policy
        self.names = tuple(feature.name for feature in self.features)
        self.width = len(self.names)
        self._name_set = frozenset(self.names)
        self._get: Callable[[Mapping[str, Any]], Any] = itemgetter(*self.names)
        self._codes: dict[int, dict[Label, float]] = {
            index: dict(zip(feature.categories or (), map(float, feature.codes or ()), strict=True))
            for index, feature in enumerate(self.features)
            if feature.kind == "category"
        }
        self._integers = [i for i, feature in enumerate(self.features) if feature.kind == "integer"]
        self._ordered = frozenset(ordered)
        self._not_nullable = np.array([not feature.nullable for feature in self.features])
        # A category whose labels are LightGBM's own codes needs no translation, so it can take the short way.
        self._own_codes = {
            index: codes for index, codes in self._codes.items() if all(a == b for a, b in codes.items())
        }
        self._has_short_way = len(self._own_codes) == len(self._codes) and not self._integers

    def encode_row(self, row: Any) -> Sequence[float]:
        """
        Return one row's numbers in model order.

        Args:
            row: A mapping or named tuple by name, a sequence in manifest order, or a one-dimensional array.

        Raises:
            SchemaError: A name or cell does not fit.
        """
        values = self._in_order(row, None)
        if self._has_short_way and self._is_plain(values):
            return values
        numbers = [self._number(index, value, None) for index, value in enumerate(values)]
        checked = self._checked(np.array([numbers], dtype=np.float64), one_row=True)
        return checked[0].tolist() if self._ordered else numbers

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
        elif (columns := columns_of(rows)) is not None:
            matrix = self._from_columns(columns)
        elif isinstance(rows, Mapping):
            raise SchemaError("one mapping is one row: use predict_row, or a list of mappings")
        elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes | bytearray):
            matrix = self._from_rows(rows)
        else:
            raise SchemaError(
                f"rows of type {type(rows).__name__} are not understood; pass an array, a frame or a list"
            )
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
                raise SchemaError(f"one row has one dimension, this array has {row.ndim}", row=index)
            values = list(row) if row.dtype.kind in "mM" else row.tolist()
        elif hasattr(row, "_asdict"):  # a named tuple
            return self._in_order(_once(row._asdict(), len(row), index), index)
        elif isinstance(row, Sequence) and hasattr(row, "keys"):  # sqlite3.Row
            return self._in_order(_once(dict(zip(row.keys(), row, strict=True)), len(row), index), index)
        elif isinstance(row, Sequence) and not isinstance(row, str | bytes | bytearray):
            values = list(row)
        elif hasattr(row, "to_dict") and hasattr(row, "index"):  # a row of a pandas frame
            return self._in_order(_once(row.to_dict(), len(row), index), index)
        else:
            raise SchemaError(f"a row of type {kind.__name__} is not understood", row=index)
        if len(values) != self.width:
            raise SchemaError(f"{len(values)} values for {self.width} features", row=index)
        return values

    def _by_name(self, row: Mapping[Any, Any], index: int | None) -> list[Any]:
        """The slow way, which finds out what is wrong."""
        self._check_names(row, index)
        return [row.get(name) for name in self.names]

    def _check_names(self, names: Any, index: int | None) -> None:
        if self.policy.missing == "refuse":
            for name in self.names:
                if name not in names:
                    raise SchemaError("is missing", feature=name, row=index)
        if self.policy.extra == "refuse":
            for name in names:
                if name not in self._name_set:
                    raise SchemaError("is not a feature of this model", feature=str(name)[:80], row=index)

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
                raise SchemaError("is a boolean, not a number", feature=feature.name, row=row)
            value = int(value)
        if index in self._codes:
            return self._code(index, value, row)
        if type(value) is int:
            return self._exact(feature, value, row)
        if isinstance(value, float):
            return float(value)
        raise SchemaError(f"is {type(value).__name__}, not a number", feature=feature.name, row=row)

    def _exact(self, feature: Feature, value: int, row: int | None) -> float:
        try:
            number = float(value)
        except OverflowError:
            raise SchemaError("is larger than any float64", feature=feature.name, row=row) from None
        if number != value and self.policy.large_integer == "refuse":
            raise SchemaError(f"{value} is not exact as float64", feature=feature.name, row=row)
        return number

    def _code(self, index: int, value: Any, row: int | None) -> float:
        feature = self.features[index]
        if not isinstance(value, str | int | float):
            raise SchemaError(f"is {type(value).__name__}, not a category", feature=feature.name, row=row)
        if isinstance(value, float) and math.isnan(value):
            return math.nan
        code = self._codes[index].get(value)
        if code is not None:
            return code
        if self.policy.unseen == "refuse":
            shown = repr(value)[:40]
            raise SchemaError(
                f"{shown} is a category that training did not have", feature=feature.name, row=row
            )
        if isinstance(value, str) or index not in self._own_codes or index in self._ordered:
            return _UNSEEN
        # Where LightGBM's codes are the labels a number goes on as it is, to be read as Booster.predict reads it.
        return value if isinstance(value, float) else float(value) if abs(value) < _EXACT else _UNSEEN

    def _from_rows(self, rows: Sequence[Any]) -> NDArray[np.float64]:
        matrix = np.empty((len(rows), self.width), dtype=np.float64)
        for index, row in enumerate(rows):
            values = self._in_order(row, index)
            if self._has_short_way and self._is_plain(values):
                matrix[index] = values
            else:
                matrix[index] = [self._number(i, value, index) for i, value in enumerate(values)]
        return matrix

    def _from_array(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        rows = plain(rows)
        if rows.ndim != 2:
            raise SchemaError(
                f"rows have two dimensions, this array has {rows.ndim}; for one row use predict_row"
            )
        if rows.shape[1] != self.width:
            raise SchemaError(f"{rows.shape[1]} columns for {self.width} features")
        if rows.dtype.kind == "f" and rows.dtype.itemsize <= 8 and not self._codes:
            return np.ascontiguousarray(rows, dtype=np.float64)
        return self._from_columns({name: rows[:, index] for index, name in enumerate(self.names)})

    def _from_columns(self, columns: Mapping[str, Any]) -> NDArray[np.float64]:
        self._check_names(columns, None)
        sizes = {len(column) for column in columns.values()}
        if len(sizes) != 1:
            raise SchemaError("columns differ in length" if sizes else "a table without columns has no rows")
        matrix = np.full((sizes.pop(), self.width), math.nan, dtype=np.float64)
        for index, name in enumerate(self.names):
            if name in columns:
                matrix[:, index] = self._column(index, columns[name])
        return matrix

    def _column(self, index: int, column: Any) -> NDArray[np.float64] | list[float]:
        if getattr(column, "ndim", 1) != 1:
            raise SchemaError("has several values per row", feature=self.names[index])
        if isinstance(column, np.ndarray) and index in self._own_codes and column.dtype.kind in "fiu":
            if np.isin(column, list(self._own_codes[index].values())).all():
                return column.astype(np.float64)
        elif isinstance(column, np.ndarray) and index not in self._codes:
            if column.dtype.kind == "f" and column.dtype.itemsize <= 8:
                return column.astype(np.float64)
            if column.dtype.kind in "iu":
                numbers = column.astype(np.float64)
                if column.size == 0 or (column.max() <= _EXACT and column.min() >= -_EXACT):
                    return numbers
        return [self._number(index, value, row) for row, value in enumerate(column)]

    def _checked(self, matrix: NDArray[np.float64], *, one_row: bool = False) -> NDArray[np.float64]:
        """Ask the policy about nulls, infinities and fractions of an encoded matrix, and return it."""
        finite = np.isfinite(matrix)
        if not finite.all():
            nan = np.isnan(matrix)
            if self.policy.null == "refuse":
                self._refuse(nan & self._not_nullable, "is null", one_row)
            if self.policy.infinite == "refuse":
                self._refuse(~finite & ~nan, "is infinite", one_row)
        for index in self._integers:
            column = matrix[:, index]
            self._refuse_column(
                index, np.isfinite(column) & (column != np.floor(column)), "is not a whole number", one_row
            )
        for index in self._ordered:  # last, because an unseen category is no null to the policy
            matrix[matrix[:, index] == _UNSEEN, index] = math.nan
        return matrix

    def _refuse(self, wrong: NDArray[np.bool_], reason: str, one_row: bool) -> None:
        if wrong.any():
            row, column = map(int, np.argwhere(wrong)[0])
            raise SchemaError(reason, feature=self.names[column], row=None if one_row else row)

    def _refuse_column(self, index: int, wrong: NDArray[np.bool_], reason: str, one_row: bool) -> None:
        if wrong.any():
            raise SchemaError(reason, feature=self.names[index], row=None if one_row else int(wrong.argmax()))


def _once(row: dict[Any, Any], size: int, index: int | None) -> dict[Any, Any]:
    if len(row) != size:
        raise SchemaError("a name is repeated", row=index)
    return row
