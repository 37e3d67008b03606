"""Lists the model's largest SHAP contributions per asset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ml_api.trading.decision import AssetDecision
from ml_api.trading.indicators import FEATURES, FloatArray
from ml_api.trading.types import CLASSES, Contribution

__all__ = ["Explain", "contributions"]

Explain = Callable[[FloatArray], FloatArray]
"""Maps rows, float64[n, 11], to SHAP contributions, float64[n, 3, 11], in log-odds; classes as in `CLASSES`."""


def contributions(
    decisions: Sequence[AssetDecision], explain: Explain, *, top: int
) -> tuple[Contribution, ...]:
    """
    List for each decision the *top* contributions to the chosen action, largest absolute value first.

    HOLD is explained too: it is an action, although it makes no order. *explain* is called once for all decisions. It
    costs more than the decision itself, so use it only if the contributions are read.
    """
    if not decisions:
        return ()
    shares = explain(np.array([decision.row for decision in decisions]))
    listed: list[Contribution] = []
    for decision, by_class in zip(decisions, shares, strict=True):
        toward = by_class[CLASSES.index(decision.action)]
        largest = np.argsort(-np.abs(toward), kind="stable")[:top].tolist()
        listed += [
            Contribution(decision.asset, FEATURES[column], float(toward[column])) for column in largest
        ]
    return tuple(listed)
