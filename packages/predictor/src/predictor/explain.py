"""SHAP contributions as LightGBM computes them: per feature, additive to the raw score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.manifest import Label

__all__ = ["Contribution", "Explanation"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """One feature's share of one raw score."""

    feature: str
    value: float  # in raw-score units: log-odds for a classifier, never probability


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """
    Why the raw scores are what they are: `bias + contributions.sum(axis=-1)` is the raw score.

    Units are those of the raw score. The sum is exact to rounding (1e-9 of its scale); probabilities do not
    decompose this way.
    """

    contributions: NDArray[np.float64]  # [n, features], or [n, outputs, features] with several outputs
    bias: NDArray[np.float64]  # [n], or [n, outputs]: the expected raw score over the training rows
    features: tuple[str, ...]
    classes: tuple[Label, ...] = ()

    @property
    def raw(self) -> NDArray[np.float64]:
        """The raw scores that were explained: float64 [n], or [n, outputs]."""
        scores: NDArray[np.float64] = self.bias + self.contributions.sum(axis=-1)
        return scores

    def top(self, k: int, *, row: int = 0, output: int | Label = 0) -> list[Contribution]:
        """
        Return the *k* features that moved one raw score most, largest magnitude first; ties in feature order.

        Args:
            k: At most this many, >= 0.
            row: Which row of the explained ones.
            output: With several outputs, the class label, or its position where it is no label.

        Raises:
            IndexError: No such row or output.
        """
        shares = self.contributions[row]
        if shares.ndim == 2:
            shares = shares[self._position(output)]
        order = np.argsort(-np.abs(shares), kind="stable")[: max(k, 0)]
        return [Contribution(self.features[index], float(shares[index])) for index in order]

    def _position(self, output: int | Label) -> int:
        if output in self.classes:
            return self.classes.index(output)
        if isinstance(output, int):
            return output
        raise IndexError(f"no output {output!r}; the classes are {', '.join(map(repr, self.classes))}")
