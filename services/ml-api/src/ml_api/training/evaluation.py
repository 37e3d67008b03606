"""
Evaluates a model walk-forward: each test period is predicted by a model that was trained on earlier years only.

A fold tests two calendar years, and trains on every sample whose label was known before they began. The samples between
(the last 5 bars of each series) are purged, because their labels depend on the test years (Lopez de Prado, Advances in
Financial Machine Learning, 7.4.1). The baseline has no skill: it always predicts the class frequencies of the same
training samples. Nothing was tuned on these results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ml_api.trading.indicators import FloatArray
from ml_api.training.dataset import Dataset

__all__ = ["Bin", "Evaluation", "Fold", "Scores", "Splits", "evaluate", "score", "splits"]

TEST_YEARS = tuple(range(2005, 2019, 2))
"""The first test year of each fold."""

_YEARS = 2
_CLASSES = 3
_BINS = 10

Fit = Callable[[Dataset], Callable[[FloatArray], FloatArray]]
"""Trains on samples; the result maps rows, float64[n, 11], to probabilities, float64[n, 3]."""

Splits = tuple[Dataset, Dataset, int]
"""Training samples, test samples, number of purged samples."""


class Scores(TypedDict):
    """
    The metrics of one model; all but the log loss are shares of 1.

    `log_loss` is in nats, and lower is better. `balanced_accuracy` is the mean recall over the classes. `accuracy` is
    the share of right predictions. `direction_accuracy` is the share of samples in which the more probable of SELL and
    BUY was right, among those whose true class is one of these.
    """

    log_loss: float
    balanced_accuracy: float
    accuracy: float
    direction_accuracy: float


class Fold(TypedDict):
    """One test period; dates are ISO days, *trained*, *tested* and *purged* count samples."""

    test_from: str
    test_to: str
    trained: int
    purged: int
    tested: int
    model: Scores
    baseline: Scores


class Bin(TypedDict):
    """Test samples of similar predicted probability: mean prediction, observed frequency, number of samples."""

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results over all test samples of all folds; rows of *confusion* are true classes, columns predicted ones."""

    folds: list[Fold]
    model: Scores
    baseline: Scores
    confusion: list[list[int]]
    calibration: list[list[Bin]]  # per class, by rising predicted probability


def splits(data: Dataset, first_year: int) -> Splits:
    """Split *data* for the fold that tests *first_year* and the next year."""
    begin, end = (np.datetime64(f"{year}-01-01") for year in (first_year, first_year + _YEARS))
    known = data.known < begin
    purged = int(((data.dates < begin) & ~known).sum())
    return data.where(known), data.where((data.dates >= begin) & (data.dates < end)), purged


def evaluate(data: Dataset, fit: Fit, *, advance: Callable[[int], None] = lambda _: None) -> Evaluation:
    """
    Train and test all folds.

    Args:
        advance: Called with 1 after each fold.
    Cost: one training run per fold.
    """
    folds: list[Fold] = []
    truths, answers, priors = [], [], []
    for year in TEST_YEARS:
        past, test, purged = splits(data, year)
        answer = fit(past)(test.rows)
        prior = np.tile(np.bincount(past.labels, minlength=_CLASSES) / len(past), (len(test), 1))
        folds.append(
            Fold(
                test_from=str(test.dates[0]),
                test_to=str(test.dates[-1]),
                trained=len(past),
                purged=purged,
                tested=len(test),
                model=score(test.labels, answer),
                baseline=score(test.labels, prior),
            )
        )
        truths.append(test.labels)
        answers.append(answer)
        priors.append(prior)
        advance(1)
    truth, predicted = np.concatenate(truths), np.concatenate(answers)
    counts = np.bincount(truth * _CLASSES + predicted.argmax(axis=1), minlength=_CLASSES**2)
    return Evaluation(
        folds=folds,
        model=score(truth, predicted),
        baseline=score(truth, np.concatenate(priors)),
        confusion=counts.reshape(_CLASSES, _CLASSES).tolist(),
        calibration=[_calibrate(predicted[:, k], truth == k) for k in range(_CLASSES)],
    )


def score(truth: NDArray[np.int64], probabilities: FloatArray) -> Scores:
    """Score *probabilities*, float64[n, 3], by the labels *truth*, int64[n], in which each class must occur."""
    answers = probabilities.argmax(axis=1)
    moved = truth != 1
    rising = probabilities[moved, 2] > probabilities[moved, 0]
    return Scores(
        log_loss=float(-np.log(probabilities[np.arange(len(truth)), truth]).mean()),
        balanced_accuracy=float(np.mean([(answers[truth == k] == k).mean() for k in range(_CLASSES)])),
        accuracy=float((answers == truth).mean()),
        direction_accuracy=float((rising == (truth[moved] == 2)).mean()),
    )


def _calibrate(predicted: FloatArray, occurred: NDArray[np.bool_]) -> list[Bin]:
    groups: Sequence[NDArray[np.int64]] = np.array_split(np.argsort(predicted, kind="stable"), _BINS)
    return [
        Bin(
            predicted=float(predicted[group].mean()), observed=float(occurred[group].mean()), count=len(group)
        )
        for group in groups
    ]
