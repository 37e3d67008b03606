"""Tables with named columns, recognised by what they can do: no data-frame library is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import SchemaError

__all__ = ["columns_of", "matrix_of", "plain"]

_FLOATS = frozenset({"float64", "float32", "Float64", "Float32"})  # pandas, pandas nullable, Polars


def columns_of(rows: Any) -> Mapping[str, Any] | None:
    """
    Return *rows* as columns by name, or None where it is no table.

    Understood are pandas and Polars frames (`columns`, `frame[name]`), Arrow tables (`column_names`) and NumPy record
    arrays. A pandas category column gives its labels, never its codes: those change from frame to frame.

    Raises:
        SchemaError: A column name is repeated or is no text.
    """
    names: list[Any]
    column: Callable[[str], Any]
    if isinstance(rows, np.ndarray):
        names, column = list(rows.dtype.names or ()), lambda name: plain(rows[name])
    elif hasattr(rows, "column_names") and hasattr(rows, "to_pylist"):
        names, column = list(rows.column_names), lambda name: _values(rows.column(name))
    elif hasattr(rows, "to_numpy") and hasattr(rows, "columns"):
        names, column = list(rows.columns), lambda name: _values(rows[name])
    else:
        return None
    for name in names:
        if not isinstance(name, str):
            raise SchemaError(f"a column is named by {type(name).__name__}, not by text")
    if len(set(names)) != len(names):
        raise SchemaError("a column name is repeated")
    return {name: column(name) for name in names}


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


def plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return *values* as an array of no subclass, its masked cells null; most conversions would drop the mask."""
    if not isinstance(values, np.ma.MaskedArray) or values.dtype.kind in "mM":  # times are refused anyway
        return np.asarray(values)
    cells = values.data.astype(object)
    cells[np.ma.getmaskarray(values)] = None
    return cells


def _values(column: Any) -> Any:
    """Return one column as an array where that is exact, as Python values where it is not."""
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
