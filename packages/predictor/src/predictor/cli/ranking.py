"""Measures a ranking by the NDCG of each query (Jarvelin, Kekalainen, 2002), beside the average of a random order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import SchemaError

__all__ = ["Ranked"]

_DEPTH = 10


class Ranked:
    """Compares the order of each query's rows with the best order; the rows of a query must be consecutive."""

    def __init__(self) -> None:
        self.queries: int = 0  # queries with a relevant row
        self.without: int = 0  # queries without one: every order is equally good, so they are not measured
        self._model, self._random, self._squares = 0.0, 0.0, 0.0
        self._query: Any = None
        self._scores: list[float] = []
        self._labels: list[float] = []

    def add(self, scores: NDArray[np.float64], labels: NDArray[np.float64], queries: Sequence[Any]) -> None:
        """Add rows; keeps only those of the current query in memory."""
        if (labels < 0).any() or (labels > 30).any():
            raise SchemaError(
                "the relevance is not from 0 to 30",
                remedy="check that --label names the right column",
                row=int(((labels < 0) | (labels > 30)).argmax()),
            )
        for score, label, query in zip(scores.tolist(), labels.tolist(), queries, strict=True):
            if query != self._query:
                self._close()
                self._query = query
            self._scores.append(score)
            self._labels.append(label)

    def finish(self) -> tuple[float, float]:
        """Return mean NDCG@10, in [0, 1], of the model and of a random order."""
        self._close()
        return self._model / max(1, self.queries), self._random / max(1, self.queries)

    def verdict(self) -> str:
        """Return one or two sentences: whether the order is better than a random one."""
        model, chance = self.finish()
        if not self.queries:
            return "No query has a relevant row: these rows cannot show whether the order is good."
        gain = model - chance
        error = math.sqrt(max(0.0, self._squares / self.queries - gain**2) / self.queries)
        figures = f"NDCG@{_DEPTH} {model:.4g} against {chance:.4g} over {self.queries:,} queries"
        if abs(gain) <= 2 * error or self.queries < 2:
            return f"No better than a random order: {figures}, a difference that chance can explain."
        return f"{'Better' if gain > 0 else 'Worse'} than a random order: {figures}."

    def _close(self) -> None:
        scores, gains = np.array(self._scores), 2.0 ** np.array(self._labels) - 1
        self._scores, self._labels = [], []
        if not gains.any():
            self.without += len(gains) > 0
            return
        weights = 1 / np.log2(np.arange(2, min(_DEPTH, len(gains)) + 2))
        best = float(np.sort(gains)[::-1][: len(weights)] @ weights)
        # Rows of equal score have no order, so each counts with their mean gain.
        _, place, counts = np.unique(-scores, return_inverse=True, return_counts=True)
        mean = np.bincount(place, weights=gains) / counts
        model = float(np.repeat(mean, counts)[: len(weights)] @ weights) / best
        chance = float(gains.mean() * weights.sum()) / best
        self.queries += 1
        self._model, self._random = self._model + model, self._random + chance
        self._squares += (model - chance) ** 2
