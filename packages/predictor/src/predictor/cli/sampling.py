"""Draws a uniform random sample of bounded size from rows that arrive in blocks (reservoir sampling)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._refusals import of_sample
from predictor.cli.tables import Row
from predictor.errors import SchemaError
from predictor.manifest import RowPolicy
from predictor.schema import RowSchema

__all__ = ["Sample", "CoveringSample"]

# If the sample has such cells, `write_manifest` allows them in the manifest's policy.
_HELD = ("boolean", "large_integer", "infinite")
_STRICT = RowPolicy(null="allow", unseen="allow", extra="ignore")


class Sample:
    """
    A uniform random sample of *size* of the rows that were added, or all of them if there are fewer.

    Each row gets a random number, and the rows with the smallest numbers are kept. The seed is fixed, so the same file
    gives the same sample.
    """

    def __init__(self, size: int) -> None:
        self.size: int = size
        self.seen: int = 0
        self._random = np.random.default_rng(0)
        self._held: list[tuple[float, int, Row]] = []

    def add(self, rows: Any) -> None:
        """Add *rows*: a list of mappings, or an Arrow table."""
        keys = self._random.random(len(rows))
        chosen = np.arange(len(rows))
        if len(self._held) == self.size:
            chosen = np.flatnonzero(keys < max(key for key, _, _ in self._held)) if self.size else chosen[:0]
        picked: Sequence[Row] = (
            [rows[index] for index in chosen] if isinstance(rows, list) else rows.take(chosen).to_pylist()
        )
        self._held += [
            (float(keys[index]), self.seen + int(index), row)
            for index, row in zip(chosen, picked, strict=True)
        ]
        if len(self._held) > self.size:
            self._held = sorted(self._held, key=lambda held: held[:2])[: self.size]
        self.seen += len(rows)

    def rows(self) -> list[Row]:
        """Return the rows of the sample, in the order of the file."""
        return [row for _, row in sorted(self.held(), key=lambda held: held[0])]

    def held(self) -> list[tuple[int, Row]]:
        """Return the rows of the sample, each with its number in the file, from 0."""
        return [(index, row) for _, index, row in self._held]


class CoveringSample:
    """
    A uniform random sample, plus the rows that decide what a manifest says about all rows.

    These are the rows with the smallest and largest value of each feature, its first null, the first row of each
    category, and the first row that needs each setting of the policy. So ranges and nulls of this sample are those of
    the file.
    """

    def __init__(
        self, schema: Callable[[RowPolicy], RowSchema], size: int, *, aside: Collection[str] = ()
    ) -> None:
        """
        Args:
            schema: Makes a `RowSchema` for a policy.
            size: Rows of the random sample.
            aside: Columns that are not features; they are kept in the rows.
        """
        self._make, self._aside, self._policy = schema, frozenset(aside), _STRICT
        self._schema = schema(_STRICT)
        self._random_rows = Sample(size)
        self._covering: dict[Any, tuple[float, int, Row]] = {}  # by feature and reason, or by policy setting
        self._codes = [f.kind == "category" for f in self._schema.features]

    @property
    def seen(self) -> int:
        """The number of rows seen."""
        return self._random_rows.seen

    def add(self, rows: list[Row]) -> NDArray[np.float64]:
        """
        Add *rows*, and return them encoded, [n, features].

        Raises:
            SchemaError: A row does not fit; its number is counted from the first of *rows*.
        """
        first = self._random_rows.seen
        matrix = self._encode(rows, first)
        for feature, column in enumerate(matrix.T):
            nulls = np.isnan(column)
            if nulls.any():
                self._cover((feature, "null"), 0.0, int(nulls.argmax()), rows, first)
            if self._codes[feature]:
                for code, at in zip(*np.unique(column[~nulls], return_index=True), strict=True):
                    place = int(np.flatnonzero(~nulls)[at])
                    self._cover((feature, float(code)), 0.0, place, rows, first)
                continue
            finite = np.flatnonzero(np.isfinite(column))
            if len(finite):
                low, high = finite[column[finite].argmin()], finite[column[finite].argmax()]
                self._cover((feature, "min"), float(column[low]), int(low), rows, first)
                self._cover((feature, "max"), -float(column[high]), int(high), rows, first)
        self._random_rows.add(rows)
        return matrix

    def rows(self) -> list[Row]:
        """Return the kept rows, in the order of the file."""
        held = {index: row for _, index, row in self._covering.values()} | dict(self._random_rows.held())
        return [held[index] for index in sorted(held)]

    def _encode(self, rows: list[Row], first: int) -> NDArray[np.float64]:
        """Encode *rows*; if a row needs a setting of `_HELD`, keep that row, and allow the setting from now on."""
        plain = rows
        if self._aside:
            plain = [{name: cell for name, cell in row.items() if name not in self._aside} for row in rows]
        while True:
            try:
                return self._schema.encode(plain)
            except SchemaError as error:
                if error.policy == "missing":
                    raise of_sample(error) from error
                if error.policy not in _HELD or error.row is None:
                    raise
                self._cover(("policy", error.policy), 0.0, error.row, rows, first)
                word = {"boolean": "number", "large_integer": "round", "infinite": "allow"}[error.policy]
                self._policy = self._policy.model_copy(update={error.policy: word})
                self._schema = self._make(self._policy)

    def _cover(self, what: Any, value: float, place: int, rows: list[Row], first: int) -> None:
        """Keep row *place* for *what* if its *value* is smaller than that of the row kept for it."""
        known = self._covering.get(what)
        if known is None or value < known[0]:
            self._covering[what] = (value, first + place, rows[place])
