"""Reads tables with named columns by their interface; no data-frame library is imported."""

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
    A column that is stored as positions in a list of labels: a category of pandas or Polars, a dictionary of Arrow.

    The positions are the frame's own, and change from frame to frame; the labels are what the column means.
    """

    positions: NDArray[np.int64]  # -1: null
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Any]:
        cells = [*self.labels, None]  # where position -1 finds its null
        return (cells[position] for position in self.positions.tolist())


def is_table(rows: Any) -> bool:
    """Whether *rows* is something that `columns_of` understands."""
    if isinstance(rows, np.ndarray):
        return rows.dtype.names is not None
    is_frame = hasattr(rows, "to_numpy") and hasattr(rows, "columns")
    return is_frame or (hasattr(rows, "column_names") and hasattr(rows, "to_pylist"))


def columns_of(rows: Any) -> Mapping[str, Any] | None:
    """
    Return *rows* as columns by name, or None where it is no table.

    Understood are pandas and Polars frames (`columns`, `frame[name]`), Arrow tables (`column_names`) and NumPy record
    arrays. A pandas category column gives its labels, never its codes: those change from frame to frame. A name that
    is no text counts as `str(name)`, which is what LightGBM trains on.

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
    Return a frame of nothing but floats, with its columns named *names* in that order, as one array; else None.

    Column by column is right for every frame; this is five times faster for the plainest ones.
    """
    if not hasattr(rows, "to_numpy") or not hasattr(rows, "columns") or not hasattr(rows, "dtypes"):
        return None
    if tuple(rows.columns) != names or not _FLOATS.issuperset(map(str, rows.dtypes)):
        return None
    matrix: NDArray[Any] = rows.to_numpy()
    return matrix


def is_sparse(rows: Any) -> bool:
    """Whether *rows* is a sparse matrix of SciPy's kind, in any of its formats."""
    return hasattr(rows, "tocsr") and hasattr(rows, "nnz") and len(getattr(rows, "shape", ())) == 2


def dense_blocks(rows: Any, *, cells: int = 1 << 22) -> Iterator[NDArray[np.float64]]:
    """
    Yield a sparse matrix as dense float64 pieces of at most *cells* cells each, or one row.

    An entry that is not stored is 0.0, as to LightGBM; an explicit NaN is missing.

    Raises:
        SchemaError: An entry is stored twice: SciPy adds the two, LightGBM takes the last.
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
                "an entry of the sparse matrix is there twice", remedy="call its sum_duplicates()"
            )
        dense = np.zeros((len(starts) - 1) * width, np.float64)
        dense[places] = rows.data[within]
        yield dense.reshape(-1, width)


def plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return *values* as an array of no subclass, its masked cells null; most conversions would drop the mask."""
    if not isinstance(values, np.ma.MaskedArray) or values.dtype.kind in "mM":  # times are refused anyway
        return np.asarray(values)
    cells = values.data.astype(object)
    cells[np.ma.getmaskarray(values)] = None
    return cells


def _values(column: Any) -> Any:
    """Return one column as an array where that is exact, as labels or Python values where it is not."""
    labelled = _labelled(column)
    if labelled is not None:
        return labelled
    if getattr(column, "hasnans", False) and not isinstance(column.dtype, np.dtype):
        return column.to_numpy(dtype=object)  # pandas, too, would turn whole numbers with nulls into floats
    nulls = getattr(column, "null_count", 0)  # a number in Arrow, a method in Polars
    if nulls() if callable(nulls) else nulls:  # both would turn whole numbers with nulls into floats
        return _listed(column)
    try:
        return column.to_numpy()
    except Exception:  # of the frame's library: text in an Arrow batch, or a type that NumPy does not have
        return _listed(column)


def _listed(column: Any) -> Any:
    return column.to_pylist() if hasattr(column, "to_pylist") else column.to_list()


def _labelled(column: Any) -> Labelled | None:
    """Return a column of labels by its positions, or None where it is of another kind."""
    if hasattr(column, "cat") and hasattr(getattr(column.dtype, "categories", None), "tolist"):  # pandas
        return Labelled(np.asarray(column.cat.codes, np.int64), column.cat.categories.tolist())
    if hasattr(column, "to_physical") and str(column.dtype).split("(")[0] in (
        "Categorical",
        "Enum",
    ):  # Polars
        used = column.drop_nulls().unique()
        order = used.to_physical().arg_sort()  # numbers may have gaps: Polars shares them among columns
        numbers = used.to_physical().cast(int).to_numpy()[order.to_numpy()]
        stored = column.to_physical().cast(int).fill_null(-1).to_numpy()
        positions = np.where(stored < 0, -1, np.searchsorted(numbers, stored))
        return Labelled(positions.astype(np.int64), used.gather(order).cast(str).to_list())
    if hasattr(column, "combine_chunks") and hasattr(column, "type"):  # a column of several pieces, of Arrow
        column = column.unify_dictionaries() if hasattr(column, "unify_dictionaries") else column
        column = column.combine_chunks()
    if hasattr(column, "dictionary") and hasattr(column, "indices"):  # Arrow
        positions = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return Labelled(positions.astype(np.int64), column.dictionary.to_pylist())
    return None
