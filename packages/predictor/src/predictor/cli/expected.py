"""Compares a model file's answers with the trained model's own predictions, for every row of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._model_file import ModelText
from predictor.cli.tables import Row, TableError
from predictor.integrity import Comparison, sha256_of
from predictor.manifest import Feature, Manifest
from predictor.model import Model

__all__ = ["Expected"]


class Expected:
    """Compares the trained model's predictions, given in columns of the rows, with the model file's, block by block."""

    def __init__(
        self, data: bytes, text: ModelText, features: Sequence[Feature], columns: Sequence[str]
    ) -> None:
        """
        Args:
            data: The model file's bytes.
            text: The parsed model file.
            features: The features by which rows are read, in model order.
            columns: The columns with the expected predictions: one per output or class, or one that holds lists.

        Raises:
            ModelError: As `Model.from_bytes`.
        """
        draft = Manifest(
            name="draft",
            version="draft",
            sha256=sha256_of(data),
            lightgbm="",
            objective=text.objective,
            output=text.output,
            n_trees=text.n_trees,
            n_outputs=text.n_outputs,
            features=tuple(features),
        )
        self._model = Model.from_bytes(data, manifest=draft)
        self._columns, self._comparison = tuple(columns), Comparison()

    def values(self, rows: Sequence[Row], *, first: int = 0) -> NDArray[np.float64]:
        """
        Return the expected predictions in *rows*: float64 [n], or [n, columns].

        Raises:
            TableError: A row has none, or lists differ in length; rows are counted from *first*.
        """
        answers = [self._of(row, number) for number, row in enumerate(rows, first)]
        try:
            found = np.array(answers, dtype=np.float64)
        except ValueError as error:
            raise TableError(
                f"rows from {first} on have lists of different lengths in {self._named}; give one number per output"
            ) from error
        return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found

    def add(self, matrix: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
        """
        Compare the model's answers to the encoded rows *matrix* with *expected*, which `values` returned for them.

        Raises:
            ManifestError: *expected* does not have one number per output of the model.
        """
        self._comparison.add(self._model.predict_encoded(matrix), expected)

    def check(self) -> None:
        """
        Refuse the model unless every row that was added has its expected answer, bit for bit.

        Raises:
            GoldenRowMismatch: Some have not; the message says how many, the first one, and the largest difference.
        """
        self._comparison.check("rows")

    @property
    def _named(self) -> str:
        return ", ".join(map(repr, self._columns))

    def _of(self, row: Row, number: int) -> list[float]:
        cells: list[Any] = []
        for column in self._columns:
            cell = row.get(column)
            cells += cell if isinstance(cell, list) else [cell]
        if not all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells):
            raise TableError(
                f"row {number} has no number in {self._named}; name the columns of the predictions with --expected"
            )
        return cells
