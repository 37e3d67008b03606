"""SHAP contributions as LightGBM computes them: one per feature, with the raw score as their sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.errors import Unsupported
from predictor.manifest import Label

__all__ = ["Contribution", "Explanation", "check_sums"]

_SUM_ERROR = 1e-9  # relative to the row's largest contribution


@dataclass(frozen=True, slots=True)
class Contribution:
    """One feature's SHAP contribution to one raw score."""

    feature: str
    value: float  # in raw-score units: log-odds for a classifier, never probability


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """
    The SHAP contributions of each feature to each raw score: `bias + contributions.sum(axis=-1)` is the raw score.

    All values are in raw-score units. The sum is exact up to rounding (1e-9 of its scale). A probability is not such a
    sum.
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
        Return the *k* largest contributions to one raw score by absolute value, largest first; ties in feature order.

        Args:
            k: At most this many, >= 0.
            row: The position among the explained rows.
            output: A class label, or else a position; default the first or only output. The only output of a binary
                model is that of its second class.

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


def check_sums(shares: NDArray[np.float64], raw: NDArray[np.float64]) -> None:
    """
    Check that *shares* [n, outputs, features + 1], the bias last, add up to the scores *raw* [n, outputs].

    LightGBM's do not on branches that test many different features: its rounding errors grow with their number. From
    about 20 features on they can be noticed, and beyond 50 no digit may be right.

    Raises:
        Unsupported: They are not finite, or do not add up.
    """
    if not np.isfinite(shares).all():
        raise Unsupported(
            "contributions are not finite: the model file lacks leaf_count and internal_count; save it again with"
            " LightGBM"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(shares.sum(axis=-1) - raw)
    if not (off <= _SUM_ERROR * np.abs(shares).max(axis=-1)).all():
        raise Unsupported(
            "LightGBM's contributions do not add up to the raw score: its rounding errors are too large on branches"
            " that test many different features. The native kernel's are not; `info.engine_reason` says why it does"
            " not run"
        )
