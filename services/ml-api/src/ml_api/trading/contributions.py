"""Finds the model's largest contributions per asset, listed beside the fixed rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ml_api.trading.decision import AssetDecision
from ml_api.trading.indicators import FEATURES, FloatArray
from ml_api.trading.types import CLASSES, Contribution

__all__ = ["Explain", "contributions"]

Explain = Callable[[FloatArray], FloatArray]
"""float64[n, 11] -> SHAP contributions float64[n, 3, 11] in log-odds, classes in the order of `CLASSES`."""


def contributions(
    decisions: Sequence[AssetDecision], explain: Explain, *, top: int
) -> tuple[Contribution, ...]:
    """
    List each decision's *top* features by magnitude, largest first, towards the action that was chosen.

    HOLD is explained too: it is an action, though it makes no order. One call of *explain* for all decisions; it costs
    more than the whole decision, so ask for it only where somebody reads it.
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
