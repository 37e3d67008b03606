"""A fair sample of rows that arrive in blocks: every row is as likely as any other, and at most so many are held."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.cli.tables import Row
from predictor.errors import SchemaError
from predictor.manifest import RowPolicy
from predictor.schema import RowSchema

__all__ = ["Sample", "TellingSample"]

# What a manifest's sample may hold, as `write_manifest` has it; the last three it then allows.
_HELD = ("boolean", "large_integer", "infinite")
_STRICT = RowPolicy(null="allow", unseen="allow", extra="ignore")


class Sample:
    """
    Holds *size* of the rows it was shown, each set of so many equally likely; all of them where there are fewer.

    Every row draws a random number, and those with the smallest are kept. The seed is fixed: one file, one sample.
    """

    def __init__(self, size: int) -> None:
        self.size: int = size
        self.seen: int = 0
        self._random = np.random.default_rng(0)
        self._held: list[tuple[float, int, Row]] = []

    def add(self, rows: Any) -> None:
        """Show *rows*: mappings, or an Arrow table."""
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
        """Return what is held, in the order of the file."""
        return [row for _, row in sorted(self.held(), key=lambda held: held[0])]

    def held(self) -> list[tuple[int, Row]]:
        """Return what is held, each row with its number in the file, from 0."""
        return [(index, row) for _, index, row in self._held]


class TellingSample:
    """
    A fair sample, and with it each row that alone decides what a manifest says of all rows.

    These are the rows with the smallest and largest value of a feature, its first null, the first of each category, and
    the first that only a word of the policy lets in. So ranges and nulls of the sample are those of the file.
    """

    def __init__(
        self, schema: Callable[[RowPolicy], RowSchema], size: int, *, aside: Collection[str] = ()
    ) -> None:
        """
        Args:
            schema: Makes what reads rows by a policy.
            size: Rows of the fair sample.
            aside: Columns that are kept with the rows, and are no features.
        """
        self._make, self._aside, self._policy = schema, frozenset(aside), _STRICT
        self._schema = schema(_STRICT)
        self._fair = Sample(size)
        self._telling: dict[Any, tuple[float, int, Row]] = {}  # by what it tells
        self._codes = [f.kind == "category" for f in self._schema.features]

    @property
    def seen(self) -> int:
        """The number of rows seen."""
        return self._fair.seen

    def add(self, rows: list[Row]) -> NDArray[np.float64]:
        """
        Show rows, and return them encoded, [n, features].

        Raises:
            SchemaError: A row does not fit; counted from the first of *rows*.
        """
        first = self._fair.seen
        matrix = self._encode(rows, first)
        for feature, column in enumerate(matrix.T):
            nulls = np.isnan(column)
            if nulls.any():
                self._tell((feature, "null"), 0.0, int(nulls.argmax()), rows, first)
            if self._codes[feature]:
                for code, at in zip(*np.unique(column[~nulls], return_index=True), strict=True):
                    place = int(np.flatnonzero(~nulls)[at])
                    self._tell((feature, float(code)), 0.0, place, rows, first)
                continue
            finite = np.flatnonzero(np.isfinite(column))
            if len(finite):
                low, high = finite[column[finite].argmin()], finite[column[finite].argmax()]
                self._tell((feature, "min"), float(column[low]), int(low), rows, first)
                self._tell((feature, "max"), -float(column[high]), int(high), rows, first)
        self._fair.add(rows)
        return matrix

    def rows(self) -> list[Row]:
        """Return the rows that are held, in the order of the file."""
        held = {index: row for _, index, row in self._telling.values()} | dict(self._fair.held())
        return [held[index] for index in sorted(held)]

    def _encode(self, rows: list[Row], first: int) -> NDArray[np.float64]:
        """Read *rows*, and give in to what only a word of the policy lets in: the row that needs it is told."""
        plain = rows
        if self._aside:
            plain = [{name: cell for name, cell in row.items() if name not in self._aside} for row in rows]
        while True:
            try:
                return self._schema.encode(plain)
            except SchemaError as error:
                if error.policy not in _HELD or error.row is None:
                    raise
                self._tell(("policy", error.policy), 0.0, error.row, rows, first)
                word = {"boolean": "number", "large_integer": "round", "infinite": "allow"}[error.policy]
                self._policy = self._policy.model_copy(update={error.policy: word})
                self._schema = self._make(self._policy)

    def _tell(self, what: Any, value: float, place: int, rows: list[Row], first: int) -> None:
        """Hold row *place* for *what*, unless an earlier one has no larger *value*."""
        known = self._telling.get(what)
        if known is None or value < known[0]:
            self._telling[what] = (value, first + place, rows[place])
