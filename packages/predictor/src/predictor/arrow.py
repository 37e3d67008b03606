"""
Scores tables with a verified model, in any engine that calls a function for a batch of rows.

Make one `Scorer` in the driver process; the engine pickles it and sends it to its workers. Each worker process loads
the model once, and checks that the file has the same bytes as in the driver. DuckDB, Polars, Dask, Ray Data and Spark
can use it: docs/predictor/scale-out.md has an example of each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictor._fork_lock import ForkLock
from predictor._output_names import output_names
from predictor._refusals import AS_TABLE, ONE_NAME
from predictor._tables import is_table
from predictor.errors import SchemaError
from predictor.manifest import Manifest, manifest_path
from predictor.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scorer"]

_loading = ForkLock()


@dataclass(frozen=True, slots=True)
class Scorer:
    """
    A function that adds a model's answers to a table; it can be pickled, and is safe to share among threads.

    Example:
        >>> from predictor.arrow import Scorer
        >>> Scorer("absent.txt")
        Traceback (most recent call last):
        ...
        predictor.errors.ManifestError: no manifest at 'absent.txt.manifest.json' ...

    Attributes:
        path: The model file, with its manifest beside it; at the same path on every machine.
        raw: Whether the answers are raw scores.
        sha256: The SHA-256 that the file must have; default that in the manifest here and now.
        names: The columns of answers: `prediction`, or `p_<class>` for each class; raw scores: `raw`, `raw_<class>`.
    """

    path: str | os.PathLike[str]
    raw: bool = False
    sha256: str = field(default="", kw_only=True)
    names: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        """
        Load the model here.

        Raises:
            ModelError: As `Model.load`.
        """
        path = str(Path(self.path).absolute())
        object.__setattr__(self, "path", path)
        if not self.sha256:
            object.__setattr__(self, "sha256", Manifest.read(manifest_path(path)).sha256)
        model = _load(path, self.sha256)
        object.__setattr__(self, "names", output_names(model.info, is_raw=self.raw))

    def __call__(self, rows: Any) -> Any:
        """
        Return *rows* with the answers as further columns.

        Args:
            rows: An Arrow `Table` or `RecordBatch`, a Polars or a pandas frame. Columns that are not features of the
                model are kept.

        Returns:
            The same kind of table, with one more float64 column for each of `names`.

        Raises:
            SchemaError: A name or cell does not fit, or a column has the name of an answer.
        """
        answers = self._answers(rows)
        names = _names(rows)
        for name in self.names:
            if name in names:
                raise SchemaError("is the name of an answer", remedy="rename the column", feature=name)
        columns = dict(zip(self.names, answers.T, strict=True))
        if hasattr(rows, "with_columns"):  # Polars
            import polars as pl

            return rows.with_columns(pl.Series(name, column) for name, column in columns.items())
        if hasattr(rows, "assign"):  # pandas
            return rows.assign(**columns)
        import pyarrow as pa

        arrays = [*rows.columns, *(pa.array(column) for column in columns.values())]
        return type(rows).from_arrays(arrays, names=[*names, *self.names])

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield each Arrow record batch with its answers, for Spark's `mapInArrow`; errors as `__call__`."""
        for batch in batches:
            yield self(batch)

    def columns(self, *columns: Any) -> Any:
        """
        Return one Arrow array of answers to *columns*: Arrow arrays in the order of the model's features.

        For a user-defined function of DuckDB, whose arguments have no names; create it with `null_handling="special"`,
        or DuckDB answers NULL for each row that has a null. If a row has several answers, they are one list per row.

        Raises:
            SchemaError: There are more or fewer columns than features, or a cell does not fit.
        """
        import pyarrow as pa

        features = _load(str(self.path), self.sha256).info.features
        if len(columns) != len(features):
            raise SchemaError(
                f"{len(columns)} columns for {len(features)} features", remedy=f"pass {', '.join(features)}"
            )
        answers = self._answers(pa.table(list(columns), names=list(features)))
        if answers.shape[1] == 1:
            return pa.array(answers[:, 0])
        return pa.FixedSizeListArray.from_arrays(pa.array(answers.ravel()), answers.shape[1])

    def _answers(self, rows: Any) -> NDArray[Any]:
        model = _load(str(self.path), self.sha256)
        known = frozenset(model.info.features)
        kept = [name for name in _names(rows) if str(name) in known]
        if len(set(kept)) < len(kept):
            repeated = next(name for name in kept if kept.count(name) > 1)
            raise SchemaError("a name is repeated", remedy=ONE_NAME, feature=str(repeated))
        return model.predict(
            rows.select(kept) if hasattr(rows, "select") else rows[kept], raw=self.raw
        ).reshape(-1, len(self.names))


def _names(rows: Any) -> list[Any]:
    """Return the column names of *rows*; Arrow has them in its schema, frames in `columns`."""
    if not (is_table(rows) and hasattr(rows, "columns")):
        raise SchemaError(f"rows of type {type(rows).__name__} are not understood", remedy=AS_TABLE)
    return list(rows.schema.names if hasattr(rows, "num_columns") else rows.columns)


@lru_cache(maxsize=8)
def _load_once(path: str, sha256: str) -> Model:
    return Model.load(path, sha256=sha256)


def _load(path: str, sha256: str) -> Model:
    with _loading.held():  # threads that come at the same time load the model once
        return _load_once(path, sha256)
