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

    def top(self, k: int, *, row: int = 0, output: Label | None = None) -> list[Contribution]:
        """
        Return the *k* features that moved one raw score most, largest magnitude first; ties in feature order.

        Args:
            k: At most this many, >= 0.
            row: Which row of the explained ones.
            output: A class label, or a position where it is no label; default the first, or only, output. The one
                output of a binary model is that of its second class.

        Raises:
            IndexError: No such row or output.
        """
        shares = np.atleast_2d(self.contributions[row])
        shares = shares[self._position(output, len(shares))]
        order = np.argsort(-np.abs(shares), kind="stable")[: max(k, 0)]
        return [Contribution(self.features[index], float(shares[index])) for index in order]

    def _position(self, output: Label | None, outputs: int) -> int:
        if output is None:
            return 0
        labels = self.classes if outputs > 1 else self.classes[1:]
        if output in labels:
            return labels.index(output)
        if isinstance(output, int) and 0 <= output < outputs and output not in self.classes:
            return output
        raise IndexError(
            f"no output {output!r}; the outputs are {', '.join(map(repr, labels or range(outputs)))}"
        )
