"""
Measures answers against labels block by block, by sums and counts, so that memory does not grow with the rows.

Each loss has a baseline: that of the best constant answer on the same rows, which is their class frequencies or their
mean. A difference counts if it is above two standard errors, on the assumption that rows are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._objectives import per_class
from predictor.errors import SchemaError
from predictor.manifest import Label

__all__ = ["Classified", "Compared", "Curve", "Estimated", "numbers_of", "positions_of", "wilson"]

BINS = 10  # of the probability scale, for calibration
_GRID, _REACH = 8_000, 20.0  # log-odds from -20 to 20 in steps of 0.005, for ROC and PR
_TINY = 1e-15  # the least probability: with 0, one row would make the log loss infinite
_CERTAIN = 2.0  # standard errors
_PAIRS = 20_000  # most pairs of label and prediction that are kept for the charts of a regression

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Compared:
    """A loss (smaller is better) of the model and of the baseline, a constant answer on the same rows."""

    name: str
    model: float
    baseline: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One class against the rest, by falling score; scores in one step of 0.005 log-odds count as equal."""

    label: Label
    recall: Floats  # the true positive rate
    fall_out: Floats  # the false positive rate
    precision: Floats
    area: float  # under the ROC curve; NaN if this class or the rest has no rows
    average_precision: float
    share: float  # the share of rows that are of this class


class Classified:
    """Counts a classifier's probabilities against the true classes."""

    def __init__(self, classes: Sequence[Label]) -> None:
        k = len(classes)
        self.classes: tuple[Label, ...] = tuple(classes)
        # [true class, most probable class]
        self.confusion: NDArray[np.int64] = np.zeros((k, k), dtype=np.int64)
        self._loss, self._squared, self._brier = np.zeros(k), 0.0, 0.0
        self._bins = np.zeros((k, BINS, 3))  # rows, sum of probabilities, rows of the class
        self._grid = np.zeros((k, _GRID, 2), dtype=np.int64)  # rows of other classes, rows of this class

    @property
    def rows(self) -> int:
        """The number of rows counted."""
        return int(self.confusion.sum())

    @property
    def shown(self) -> tuple[int, ...]:
        """The classes to draw curves of; of two classes only the second, because the first adds nothing."""
        return (1,) if len(self.classes) == 2 else tuple(range(len(self.classes)))

    def add(self, answers: Floats, truth: NDArray[np.int64]) -> None:
        """Count *answers* [n, outputs] and the position of each row's true class."""
        given = per_class(answers)
        of_all = given / given.sum(axis=1, keepdims=True).clip(_TINY)  # one-vs-all does not sum to 1
        k, is_true = len(self.classes), truth[:, None] == np.arange(len(self.classes))
        loss = -np.log(of_all[np.arange(len(truth)), truth].clip(_TINY, 1.0))
        self._loss += np.bincount(truth, weights=loss, minlength=k)
        self._squared += float((loss**2).sum())
        self._brier += float(((of_all - is_true) ** 2).sum())
        np.add.at(self.confusion, (truth, of_all.argmax(axis=1)), 1)
        for index in self.shown:
            p, hit = given[:, index], is_true[:, index]
            place = np.minimum((p * BINS).astype(int), BINS - 1)
            for column, weights in enumerate((None, p, hit)):
                self._bins[index, :, column] += np.bincount(place, weights=weights, minlength=BINS)
            odds = np.log(p.clip(1e-12, 1.0) / (1.0 - p).clip(1e-12, 1.0))
            place = ((odds.clip(-_REACH, _REACH) + _REACH) / (2 * _REACH) * (_GRID - 1)).astype(int)
            for side in (0, 1):
                self._grid[index, :, side] += np.bincount(place[hit == bool(side)], minlength=_GRID)

    def losses(self) -> tuple[Compared, Compared]:
        """Return log loss (nats) and Brier score; of two classes, the squared error of one probability, else of all."""
        share = self.confusion.sum(axis=1) / max(1, self.rows)
        half = 2 if len(self.classes) == 2 else 1
        return (
            Compared("log loss", float(self._loss.sum()) / self.rows, float(share @ self._prior_loss())),
            Compared("Brier score", self._brier / self.rows / half, float(1 - (share**2).sum()) / half),
        )

    def verdict(self) -> str:
        """Return one or two sentences: whether the model is better than guessing the class frequencies."""
        counts = self.confusion.sum(axis=1)
        if (counts > 0).sum() < 2:
            only = self.classes[int(counts.argmax())]
            return f"All rows are of the class {only}: these rows cannot show whether the model tells classes apart."
        loss, prior_loss = self.losses()[0], self._prior_loss()
        squared = self._squared - 2 * float(prior_loss @ self._loss) + float(counts @ prior_loss**2)
        error = _standard_error(loss.baseline - loss.model, squared, self.rows)
        return _verdict(loss, error, self.rows, "guessing the class frequencies")

    def calibration(self, index: int) -> Floats:
        """Return [bins, 5] for a class: mean probability, observed share, low and high of its 95 % interval, rows."""
        n, predicted, hits = self._bins[index][self._bins[index, :, 0] > 0].T
        low, high = wilson(hits, n)
        return np.column_stack((predicted / n, hits / n, low, high, n))

    def curve(self, index: int) -> Curve:
        """Return ROC and PR of one class against the rest."""
        misses, hits = np.cumsum(self._grid[index, ::-1], axis=0).T
        positives, negatives = max(1, int(hits[-1])), max(1, int(misses[-1]))
        recall, fall_out = hits / positives, misses / negatives
        precision = hits / np.maximum(1, hits + misses)
        area = float(np.sum(np.diff(fall_out, prepend=0) * (recall + np.concatenate(([0], recall[:-1]))) / 2))
        changed = np.flatnonzero(np.diff(hits + misses, prepend=0))
        return Curve(
            self.classes[index],
            np.concatenate(([0.0], recall[changed])),
            np.concatenate(([0.0], fall_out[changed])),
            np.concatenate((precision[changed][:1], precision[changed])),
            area if hits[-1] and misses[-1] else math.nan,
            float(np.sum(np.diff(recall, prepend=0) * precision)) if hits[-1] else math.nan,
            int(hits[-1]) / max(1, int(hits[-1] + misses[-1])),
        )

    def _prior_loss(self) -> Floats:
        """Return for a row of each class the log loss of guessing the frequencies; 0 for a class without rows."""
        counts = self.confusion.sum(axis=1)
        return -np.log(np.where(counts > 0, counts, self.rows) / max(1, self.rows))


class Estimated:
    """Sums the errors of a regression, and keeps a sample of pairs of label and prediction."""

    def __init__(self) -> None:
        self.rows: int = 0
        self._mean, self._spread, self._squared = 0.0, 0.0, 0.0
        self._random, self._keys = np.random.default_rng(0), np.empty(0)
        self.pairs: Floats = np.empty((0, 2))  # label, prediction; all rows, or a sample of `_PAIRS`

    def add(self, answers: Floats, truth: Floats) -> None:
        """Count *answers* [n, 1] and their true values, n >= 1."""
        n, mean = len(truth), float(truth.mean())
        shift, total = mean - self._mean, self.rows + n
        # Chan, Golub, LeVeque (1979): combines the sums of squared deviations of two parts without losing digits.
        self._spread += float(((truth - mean) ** 2).sum()) + shift**2 * self.rows * n / total
        self._mean, self.rows = self._mean + shift * n / total, total
        self._squared += float(((truth - answers[:, 0]) ** 2).sum())
        keys = np.concatenate((self._keys, self._random.random(n)))
        pairs = np.concatenate((self.pairs, np.column_stack((truth, answers[:, 0]))))
        kept = np.sort(np.argsort(keys, kind="stable")[:_PAIRS])
        self._keys, self.pairs = keys[kept], pairs[kept]

    def losses(self) -> tuple[Compared, Compared]:
        """Return RMSE of all rows, and MAE of the pairs that are kept."""
        truth, predicted = self.pairs.T
        of = "" if len(truth) == self.rows else f" (sample of {len(truth):,} rows)"
        return (
            Compared("RMSE", math.sqrt(self._squared / self.rows), math.sqrt(self._spread / self.rows)),
            Compared(
                f"MAE{of}", float(np.abs(truth - predicted).mean()), float(np.abs(truth - self._mean).mean())
            ),
        )

    def verdict(self) -> str:
        """Return one or two sentences: whether the model is better than the mean of the labels."""
        if self._spread == 0:
            return "All labels are equal: these rows cannot show whether the model is better than their mean."
        truth, predicted = self.pairs.T
        gain = (truth - self._mean) ** 2 - (truth - predicted) ** 2
        error = float(gain.std()) / math.sqrt(self.rows)
        # The squared RMSE is a mean, so its standard error is known; it is scaled to the RMSE.
        rmse = self.losses()[0]
        mean_gain = (self._spread - self._squared) / self.rows
        return _verdict(
            rmse, error * (rmse.baseline - rmse.model) / (mean_gain or 1.0), self.rows, "the mean label"
        )


def wilson(hits: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Return low and high of the 95 % score interval (Wilson, 1927) of the share *hits* / *rows*; *rows* > 0."""
    z, share = 1.96, hits / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    reach = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return np.minimum(middle - reach, share).clip(0, 1), np.maximum(middle + reach, share).clip(0, 1)


def positions_of(labels: Sequence[Any], classes: Sequence[Label]) -> NDArray[np.int64]:
    """
    Return the position of each label in *classes*: of the equal class, or else of the one with the same text.

    Raises:
        SchemaError: A label is missing or not a class; its row is counted from the first of *labels*.
    """
    equal = {label: index for index, label in enumerate(classes)}
    by_text = {str(label): index for index, label in enumerate(classes)}
    texts_are_numbers = {float(text): index for text, index in by_text.items() if _is_number(text)}
    found = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        if label is None or (isinstance(label, float) and math.isnan(label)):
            raise SchemaError("the label is missing", remedy="leave rows without a label out", row=row)
        index = equal.get(label, by_text.get(str(label)))
        if index is None and isinstance(label, int | float):
            index = texts_are_numbers.get(float(label))
        if index is None:
            known = ", ".join(str(known) for known in classes[:10])
            raise SchemaError(
                f"label {str(label)[:40]!r} is not a class of this model",
                remedy=f"the classes are {known}; check that --label names the right column",
                row=row,
            )
        found[row] = index
    return found


def numbers_of(labels: Sequence[Any]) -> Floats:
    """
    Return labels as float64.

    Raises:
        SchemaError: A label is missing, not a number or not finite; its row is counted from the first of *labels*.
    """
    found = np.empty(len(labels))
    for row, label in enumerate(labels):
        try:
            found[row] = math.nan if label is None else float(label)
        except (TypeError, ValueError) as error:
            raise SchemaError(
                f"label {str(label)[:40]!r} is not a number",
                remedy="labels of this model are numbers; check that --label names the right column",
                row=row,
            ) from error
        if not math.isfinite(found[row]):
            raise SchemaError(
                "the label is missing or not finite", remedy="leave rows without a label out", row=row
            )
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _standard_error(mean: float, squares: float, n: int) -> float:
    return math.sqrt(max(0.0, squares / n - mean**2) / n)


def _verdict(loss: Compared, error: float, rows: int, than: str) -> str:
    gain = loss.baseline - loss.model
    figures = f"{loss.name} {loss.model:.4g} against {loss.baseline:.4g} on {rows:,} rows"
    needed = max(_CERTAIN * error, 1e-6 * loss.baseline)  # smaller differences are rounding errors
    if gain > needed:
        return f"Better than {than}: {figures}, {gain / loss.baseline:.1%} lower."
    if gain < -needed:
        return f"Worse than {than}: {figures}. Do not use these answers as they are."
    return f"No better than {than}: {figures}, a difference that chance can explain (within two standard errors)."
