"""Compares served rows and answers with the reference in the manifest: counters and population stability indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._fork_lock import ForkLock
from predictor.errors import ManifestError, SchemaError
from predictor.manifest import Feature, Label, Manifest, Reference, RowPolicy
from predictor.schema import RowSchema

__all__ = ["AnswerDrift", "DriftMonitor", "FeatureDrift", "population_stability_index"]

# Count every row, also one that the model's own policy refuses. Only text in place of a number is still refused.
_COUNT_ALL = RowPolicy(
    missing="null",
    extra="ignore",
    null="allow",
    infinite="allow",
    unseen="allow",
    boolean="number",
    large_integer="round",
)
_SHARE_FLOOR = 1e-4  # the share of an empty bin: with 0, one empty bin would make the index infinite


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDrift:
    """The statistics of one feature since the monitor started or was reset."""

    feature: str
    rows: int
    nulls: int
    below: int  # values less than the smallest of the sample rows; negative infinity included
    above: int  # values greater than the largest of the sample rows; infinity included
    unseen: int  # values that are a category which training did not have
    # Population stability index; None before any row, or without a reference in the manifest.
    psi: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDrift:
    """The statistics of one output of the model since the monitor started or was reset."""

    output: Label | None  # its class; None for the only output of a model without classes
    rows: int  # rows that were observed with answers, NaN included
    psi: float | None  # population stability index; None before any answer


class DriftMonitor:
    """
    Counts rows and answers, and compares them with the manifest's reference. Safe to share among threads.

    It is separate from prediction, so the only cost is that of `observe`: about 10 us per feature and call. So call it
    with batches.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._features, self._answers, self._outputs = manifest.features, manifest.answers, manifest.n_outputs
        self._labels: Sequence[Label | None] = manifest.classes or range(len(self._answers))
        if len(self._answers) < 2:  # a binary model gives the probability of its second class
            self._labels = (manifest.classes[1:] or (None,))[: len(self._answers)]
        self._schema = RowSchema(
            [feature.model_copy(update={"kind": _kind(feature)}) for feature in manifest.features], _COUNT_ALL
        )
        self._guard = ForkLock()
        self.reset()

    def reset(self) -> None:
        """Set all counts to 0."""
        with self._guard.held():
            self._rows = 0
            self._counts = np.zeros((len(self._features), 4), dtype=np.int64)  # null, below, above, unseen
            self._bins = [np.zeros(_bin_count(feature), dtype=np.int64) for feature in self._features]
            self._answered = [np.zeros(len(one.shares) + 1, dtype=np.int64) for one in self._answers]

    def observe(self, rows: Any, answers: NDArray[np.float64] | None = None) -> None:
        """
        Count *rows*, also those that the model's policy would refuse.

        Args:
            rows: n >= 0 rows, in any form that `Model.predict` takes.
            answers: What `Model.predict` returned for them, [n] or [n, outputs], not raw scores; or None.

        Raises:
            SchemaError: The width is wrong, a number is text, or the answers are not numbers of that shape; nothing was
                counted.
        """
        matrix = self._schema.encode(rows)
        answered = []
        if answers is not None:
            checked = _checked_answers(answers, rows=len(matrix), outputs=self._outputs)
            answered = _count_answers(self._answers, checked)
        found = [_count(feature, matrix[:, index]) for index, feature in enumerate(self._features)]
        with self._guard.held():
            self._rows += len(matrix)
            for index, (counts, bins) in enumerate(found):
                self._counts[index] += counts
                self._bins[index] += bins
            for index, bins in enumerate(answered):
                self._answered[index] += bins

    def answers(self) -> tuple[AnswerDrift, ...]:
        """Return one `AnswerDrift` per output, in order; empty if the manifest has no distribution of answers."""
        with self._guard.held():
            counts = [array.copy() for array in self._answered]
        return tuple(
            AnswerDrift(
                output=label,
                rows=int(bins.sum()),
                psi=_stability(reference, bins[:-1], null=int(bins[-1])) if bins.any() else None,
            )
            for label, reference, bins in zip(self._labels, self._answers, counts, strict=True)
        )

    def report(self) -> tuple[FeatureDrift, ...]:
        """Return one `FeatureDrift` per feature, in model order."""
        with self._guard.held():
            rows, counts = self._rows, self._counts.tolist()
            bins = [array.copy() for array in self._bins]
        return tuple(
            FeatureDrift(
                feature=feature.name,
                rows=rows,
                nulls=null,
                below=below,
                above=above,
                unseen=unseen,
                psi=_psi(feature, null, unseen, seen) if rows else None,
            )
            for feature, (null, below, above, unseen), seen in zip(self._features, counts, bins, strict=True)
        )


def population_stability_index(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """
    Return the sum of (a - e) * ln(a / e) over the bins' shares; 0 for equal distributions, symmetric, never negative.

    Shares below 1e-4 count as 1e-4. A common rule is to investigate from 0.1 on, and to act from 0.25 on (Siddiqi,
    Credit Risk Scorecards, 2006). With few rows, chance alone gives more than that.

    Raises:
        ManifestError: The shapes differ.
    """
    if expected.shape != actual.shape:
        raise ManifestError(f"{actual.size} bins against {expected.size} in the reference; give as many")
    e, a = np.maximum(expected, _SHARE_FLOOR), np.maximum(actual, _SHARE_FLOOR)
    return float(np.sum((a - e) * np.log(a / e)))


def _kind(feature: Feature) -> str:
    return "number" if feature.kind == "integer" else feature.kind  # count a fraction instead of refusing it


def _bin_count(feature: Feature) -> int:
    return len(feature.reference.shares) if feature.reference is not None else 0


def _count(feature: Feature, column: NDArray[np.float64]) -> tuple[list[int], NDArray[np.int64]]:
    seen = column[~np.isnan(column)]
    below = above = unseen = 0
    bins = np.zeros(_bin_count(feature), dtype=np.int64)
    if feature.kind == "category":
        codes = feature.codes or ()
        hits = np.array([np.count_nonzero(seen == code) for code in codes], dtype=np.int64)
        unseen = len(seen) - int(hits.sum())
        if feature.reference is not None:
            bins = hits
    else:
        below = int(np.count_nonzero(seen < feature.min)) if feature.min is not None else 0
        above = int(np.count_nonzero(seen > feature.max)) if feature.max is not None else 0
        if feature.reference is not None:
            bins = np.bincount(np.searchsorted(feature.reference.edges, seen), minlength=len(bins))
    return [len(column) - len(seen), below, above, unseen], bins


def _psi(feature: Feature, null: int, unseen: int, bins: NDArray[np.int64]) -> float | None:
    return (
        None if feature.reference is None else _stability(feature.reference, bins, null=null, unseen=unseen)
    )


def _stability(reference: Reference, bins: NDArray[np.int64], *, null: int, unseen: int = 0) -> float:
    """Return the index over the bins of values, one more bin for unseen categories, and one more for nulls."""
    total = max(1, null + unseen + int(bins.sum()))
    expected = np.append(np.array(reference.shares) * (1 - reference.null_share), (0.0, reference.null_share))
    return population_stability_index(expected, np.append(bins, (unseen, null)) / total)


def _checked_answers(answers: Any, *, rows: int, outputs: int) -> NDArray[np.float64]:
    """Return *answers* as float64 [rows, outputs], or raise `SchemaError` if they cannot come from `Model.predict`."""
    remedy = "pass what Model.predict returned for these rows"
    try:
        found = np.asarray(answers)
    except ValueError as error:
        raise SchemaError("the rows of the answers differ in length", remedy=remedy) from error
    shapes = [(rows, outputs), *([(rows,)] if outputs == 1 or rows == 0 else [])]
    if found.shape not in shapes:
        raise SchemaError(
            f"the answers have the shape {found.shape}, but {rows} rows of this model give {(rows, outputs)}",
            remedy=remedy,
        )
    if found.dtype.kind not in "fiu":
        raise SchemaError(f"the answers are {found.dtype}, not numbers", remedy=remedy)
    return found.astype(np.float64).reshape(rows, outputs)


def _count_answers(references: Sequence[Reference], answers: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Return for each output how many of *answers* [n, outputs] are in each bin, and at the end how many are NaN."""
    found = []
    for reference, column in zip(references, answers.T, strict=bool(references)):
        seen = column[~np.isnan(column)]
        places = np.searchsorted(reference.edges, seen)
        bins = np.bincount(places, minlength=len(reference.shares))
        found.append(np.append(bins, len(column) - len(seen)))
    return found
