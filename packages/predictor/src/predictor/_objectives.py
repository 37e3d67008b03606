"""Maps each LightGBM objective to the kind of output it gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from predictor.errors import ModelTextError, SchemaError

__all__ = ["OutputKind", "most_probable", "output_kind", "per_class"]

OutputKind = Literal["value", "probability", "probabilities", "one_vs_all", "raw"]
"""
`value`: a regression estimate. `probability`: of the second class. `probabilities`: one per class, summing to 1.
`one_vs_all`: one per class, each in [0, 1], not summing to 1. `raw`: an untransformed score (ranking, custom
objectives).
"""

# The names that LightGBM writes into a model file (its objective factory; parameters page, "objective").
_KINDS: dict[str, OutputKind] = {
    "regression": "value",
    "regression_l1": "value",
    "huber": "value",
    "fair": "value",
    "poisson": "value",
    "quantile": "value",
    "mape": "value",
    "gamma": "value",
    "tweedie": "value",
    "cross_entropy_lambda": "value",
    "binary": "probability",
    "cross_entropy": "probability",
    "multiclass": "probabilities",
    "multiclassova": "one_vs_all",
    "lambdarank": "raw",
    "rank_xendcg": "raw",
}
_OPTION = re.compile(r"sqrt|num_class:[1-9][0-9]{0,5}|(?:sigmoid|alpha):[-+0-9.e]{1,32}")


def output_kind(objective: str | None, *, num_class: int) -> OutputKind:
    """
    Return the kind of output that `predict` gives for the *objective* line of a model file (None: no such line).

    Raises:
        ModelTextError: LightGBM does not know the objective or an option, or the class count contradicts the header,
            which would make LightGBM read outside its buffers.
    """
    if objective is None:
        return "raw"
    name, *options = objective.split(" ")
    kind = _KINDS.get(name)
    if kind is None:
        raise ModelTextError(f"unknown objective {name[:40]!r}")
    for option in options:
        if not _OPTION.fullmatch(option):
            raise ModelTextError(f"unknown objective option {option[:40]!r}")
        label, _, value = option.partition(":")
        if label == "num_class" and int(value) != num_class:
            raise ModelTextError(f"objective names {value} classes, the header {num_class}")
        if label == "sigmoid" and not _positive(value):
            raise ModelTextError("sigmoid must be a positive number")
    if kind in ("probabilities", "one_vs_all"):
        if f"num_class:{num_class}" not in options:
            raise ModelTextError("a multiclass objective must name its classes")
    elif num_class != 1:
        raise ModelTextError(f"objective {name} gives one score, the header names {num_class} classes")
    return kind


def _positive(text: str) -> bool:
    try:
        return 0.0 < float(text) < float("inf")
    except ValueError:
        return False


def per_class(answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each class, float64 [n, classes]; a single output in *answers* means two classes."""
    return np.column_stack((1.0 - answers[:, 0], answers[:, 0])) if answers.shape[1] == 1 else answers


def most_probable(scores: NDArray[np.float64], classes: Sequence[Any]) -> NDArray[Any]:
    """
    Return for each row of *scores* [n, classes] the label of the largest score; the first of equal ones.

    Raises:
        SchemaError: A row has a score that is not finite.
    """
    not_finite = ~np.isfinite(scores).all(axis=1)
    if not_finite.any():
        raise SchemaError(
            "a score is not finite, so no class is the most probable",
            remedy="use predict to see the scores",
            row=int(not_finite.argmax()),
        )
    labels = np.array(classes or range(scores.shape[1]))
    # NumPy would turn 1 and "a" into text, -1 and 2**63 into floats, and would drop NUL at the end of text.
    kept: list[Any] = labels.tolist()
    if classes and (kept != [*classes] or [*map(type, kept)] != [*map(type, classes)]):
        labels = np.empty(len(classes), dtype=object)
        labels[:] = classes
    chosen: NDArray[Any] = labels[scores.argmax(axis=1)]
    return chosen
