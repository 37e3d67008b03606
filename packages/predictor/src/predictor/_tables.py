"""Reads tables with named columns through their methods, without importing a data-frame library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._names import names_as_text
from predictor.errors import SchemaError

__all__ = ["Labelled", "columns_of", "dense_blocks", "is_sparse", "is_table", "matrix_of", "plain"]

_FLOATS = frozenset({"float64", "float32", "Float64", "Float32"})  # pandas, pandas nullable, Polars


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """
    A dictionary-encoded column: positions in a list of labels (a category in pandas and Polars, a dictionary in Arrow).

    The same label may have another position in another frame, so only the labels are used.
    """

    positions: NDArray[np.int64]  # -1: null
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Any]:
        cells = [*self.labels, None]  # position -1 finds this None
        return (cells[position] for position in self.positions.tolist())


def is_table(rows: Any) -> bool:
    """Whether `columns_of` can read *rows*."""
    if isinstance(rows, np.ndarray):
        return rows.dtype.names is not None and rows.ndim > 0
    is_frame = hasattr(rows, "to_numpy") and hasattr(rows, "columns")
    return is_frame or (hasattr(rows, "column_names") and hasattr(rows, "to_pylist"))


def columns_of(rows: Any) -> Mapping[str, Any] | None:
    """
    Return the columns of *rows* by name, or None if *rows* is not a table.

    Reads pandas and Polars frames (`columns`, `frame[name]`), Arrow tables (`column_names`) and NumPy record arrays. Of
    a pandas category column it uses the labels, never the codes, which change from frame to frame. A name that is not
    text becomes `str(name)`, as LightGBM does in training.

    Raises:
        SchemaError: A column name is repeated.
    """
    names: list[Any]
    column: Callable[[Any], Any]
    if isinstance(rows, np.ndarray):
        names, column = list(rows.dtype.names or ()), lambda name: plain(rows[name])
    elif hasattr(rows, "column_names") and hasattr(rows, "to_pylist"):
        names, column = list(rows.column_names), lambda name: _values(rows.column(name))
    elif hasattr(rows, "to_numpy") and hasattr(rows, "columns"):
        names, column = list(rows.columns), lambda name: _values(rows[name])
    else:
        return None
    return {text: column(name) for text, name in names_as_text(names, row=None).items()}


def matrix_of(rows: Any, names: tuple[str, ...]) -> NDArray[Any] | None:
    """
    Return a frame as one array if all its columns are floats and named *names*, in that order; else None.

    This is five times faster than `columns_of`, which reads any frame.
    """
    if not hasattr(rows, "to_numpy") or not hasattr(rows, "columns") or not hasattr(rows, "dtypes"):
        return None
    if tuple(rows.columns) != names or not _FLOATS.issuperset(map(str, rows.dtypes)):
        return None
    matrix: NDArray[Any] = rows.to_numpy()
    return matrix if matrix.dtype.kind == "f" else None  # pandas: objects, where a nullable column has a null


def is_sparse(rows: Any) -> bool:
    """Whether *rows* is a SciPy sparse matrix or array, in any format."""
    return hasattr(rows, "tocsr") and hasattr(rows, "nnz") and len(getattr(rows, "shape", ())) == 2


def dense_blocks(rows: Any, *, cells: int = 1 << 22) -> Iterator[NDArray[Any]]:
    """
    Yield a sparse matrix as dense pieces [rows, width] of at most *cells* cells each, but at least one row.

    As in LightGBM, an entry that is not stored is 0, and an explicit NaN is missing. The pieces have the matrix's
    dtype, so that its cells are held to the same rules as those of an array.

    Raises:
        SchemaError: An entry is stored twice: SciPy would add the two, LightGBM would use the last.
    """
    rows = rows.tocsr()
    height, width = rows.shape
    step = max(1, cells // max(1, width))
    for first in range(0, height, step):
        starts = np.asarray(rows.indptr[first : first + step + 1], np.int64)
        within = slice(int(starts[0]), int(starts[-1]))
        columns = np.asarray(rows.indices[within], np.int64)
        places = np.repeat(np.arange(len(starts) - 1) * width, np.diff(starts)) + columns
        if len(np.unique(places)) < len(places):
            raise SchemaError(
                "the sparse matrix has an entry that is there twice", remedy="call its sum_duplicates()"
            )
        dense = np.zeros((len(starts) - 1) * width, rows.dtype)
        dense[places] = rows.data[within]
        yield dense.reshape(-1, width)


def plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return *values* as a plain ndarray, with masked cells as None; most conversions would drop the mask."""
    if not isinstance(values, np.ma.MaskedArray) or values.dtype.kind in "mM":  # times are refused later
        return np.asarray(values)
    cells = values.data.astype(object)
    cells[np.ma.getmaskarray(values)] = None
    return cells


def _values(column: Any) -> Any:
    """Return one column as `Labelled` if it has labels, as an array if that is exact, else as Python values."""
    labelled = _labelled(column)
    if labelled is not None:
        return labelled
    if getattr(column, "hasnans", False) and not isinstance(column.dtype, np.dtype):
        # pandas would turn whole numbers with nulls into floats.
        return column.to_numpy(dtype=object, na_value=None)
    nulls = getattr(column, "null_count", 0)  # a number in Arrow, a method in Polars
    # Arrow and Polars would turn whole numbers with nulls into floats.
    if nulls() if callable(nulls) else nulls:
        return _listed(column)
    try:
        return column.to_numpy()
    except Exception:  # each library raises its own: for text in an Arrow batch, or a type that NumPy lacks
        return _listed(column)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Polars before 2.1, for Int128; not an Exception
            raise
        return _listed(column)


def _listed(column: Any) -> Any:
    return column.to_pylist() if hasattr(column, "to_pylist") else column.to_list()


def _labelled(column: Any) -> Labelled | None:
    """Return a dictionary-encoded column of pandas, Polars or Arrow, or None if it is another kind of column."""
    if hasattr(column, "cat") and hasattr(getattr(column.dtype, "categories", None), "tolist"):  # pandas
        return Labelled(np.asarray(column.cat.codes, np.int64), column.cat.categories.tolist())
    if hasattr(column, "to_physical") and str(column.dtype).startswith(("Categorical", "Enum")):  # Polars
        used = column.drop_nulls().unique()
        order = used.to_physical().arg_sort()  # the numbers may have gaps, because Polars columns share them
        numbers = used.to_physical().cast(int).to_numpy()[order.to_numpy()]
        stored = column.to_physical().cast(int).fill_null(-1).to_numpy()
        positions = np.where(stored < 0, -1, np.searchsorted(numbers, stored))
        return Labelled(positions.astype(np.int64), used.gather(order).cast(str).to_list())
    if hasattr(column, "combine_chunks") and hasattr(column, "type"):  # Arrow's ChunkedArray
        column = column.unify_dictionaries() if hasattr(column, "unify_dictionaries") else column
        column = column.combine_chunks()
    if hasattr(column, "dictionary") and hasattr(column, "indices"):  # Arrow
        indices = column.indices.cast("int64")  # some are unsigned, and cannot hold -1
        positions = indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return Labelled(positions.astype(np.int64), column.dictionary.to_pylist())
    return None
