"""What moved the model: its own largest contributions per asset, beside the fixed rules, which know no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ml_api.predict.contract import Contribution
from ml_api.trading.decision import CLASSES, Verdict
from ml_api.trading.indicators import FEATURES, FloatArray

__all__ = ["Explain", "contributions"]

Explain = Callable[[FloatArray], FloatArray]
"""float64[n, 11] -> SHAP contributions float64[n, 3, 11] in log-odds, classes in the order of `CLASSES`."""


def contributions(verdicts: Sequence[Verdict], explain: Explain, *, top: int) -> tuple[Contribution, ...]:
    """
    List each verdict's *top* features by magnitude, largest first, towards the action that was chosen.

    HOLD is explained too: it is an action, though it makes no order. One call of *explain* for all verdicts; it costs
    more than the whole decision, so ask for it only where somebody reads it.
    """
    if not verdicts:
        return ()
    shares = explain(np.array([verdict.row for verdict in verdicts]))
    return tuple(
        Contribution(asset_symbol=verdict.asset, feature=FEATURES[column], log_odds=float(toward[column]))
        for verdict, toward in _chosen(verdicts, shares)
        for column in np.argsort(-np.abs(toward), kind="stable")[:top].tolist()
    )


def _chosen(verdicts: Sequence[Verdict], shares: FloatArray) -> Iterator[tuple[Verdict, FloatArray]]:
    for verdict, by_class in zip(verdicts, shares, strict=True):
        yield verdict, by_class[CLASSES.index(verdict.action)]
