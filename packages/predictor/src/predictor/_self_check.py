"""Before the kernel serves a model, compares it with LightGBM on edge cases of that model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from predictor._engine import Kernel, Refusal, make_kernel
from predictor._model_file import ParsedModel
from predictor._native import CONTRIB, LEAF, NORMAL, RAW, Booster
from predictor._trees import CATEGORICAL, Trees

__all__ = ["agrees", "hard_rows"]

# The kernel predicts a batch in tiles of 256 rows and of 64 rows; the last tile may be partly filled.
_ROWS = 65
_LARGE = 257
_SINGLES = 8
_ODD = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-36, -1e-35, -1.0, 3.9, 1e12)
# Relative to the largest contribution; measured: a few 1e-15. Tests hold the kernel to the 1e-12 of `Model.explain`.
_CONTRIBUTION_ERROR = 1e-10
# Relative to what LightGBM's contributions lack to the raw score. Where that is above rounding, the largest error of
# one contribution was 0.06 to 1 times as large (60 models with branches of 7 to 57 different features).
_THEIR_ERROR = 10.0
# For a model with hundreds of thousands of leaves, the full check in LightGBM would cost as much as loading. There it
# uses fewer rows, and compares the contributions of the first trees only.
_WALKED, _FEWEST_ROWS = 2_000_000, 9  # most leaves times rows; least rows
_EXPLAINED = 40_000  # most leaves whose contributions are compared
_SCANNED = 100_000  # most splits whose thresholds are used to make rows


def hard_rows(trees: Trees, *, width: int, count: int = _ROWS) -> NDArray[np.float64]:
    """Return float64 [count, width]: thresholds, their neighbours, nulls, zeros, categories; always the same rows."""
    rows = np.zeros((count, width))
    split_feature, threshold = trees.split_feature[:_SCANNED], trees.threshold[:_SCANNED]
    numeric = (trees.decision_type[:_SCANNED] & CATEGORICAL) == 0
    order = np.argsort(split_feature, kind="stable")  # the splits of one feature together
    ends = np.searchsorted(split_feature[order], np.arange(width + 1))
    for feature in range(width):
        own = order[ends[feature] : ends[feature + 1]]
        cuts = np.unique(threshold[own][numeric[own]])[:200]
        pool = np.concatenate([cuts, np.nextafter(cuts, np.inf), np.nextafter(cuts, -np.inf), _ODD])
        if not numeric[own].all():
            pool = np.concatenate([np.arange(64.0), _ODD])
        # Different steps per feature, prime to most pool sizes, so that rows combine the features' values in many ways.
        rows[:, feature] = pool[(np.arange(count) * 37 + feature * 101 + np.arange(count) // 7) % len(pool)]
    return rows


def agrees(kernel: Kernel, booster: Booster, parsed: ParsedModel) -> bool:
    """
    Whether *kernel* gives LightGBM's numbers: bit for bit, and contributions within 1e-10 of the largest one.

    Tests single rows, both sizes of tile, and partly filled tiles. Cost: about 150 rows in LightGBM, 2 ms at 300 trees;
    fewer rows for a large model.
    """
    text = parsed.summary
    width, outputs, trees = len(text.feature_names), text.n_outputs, text.n_trees
    leaves = int(parsed.trees.leaf_start[-1])
    rows = hard_rows(
        parsed.trees, width=width, count=min(_ROWS, max(_FEWEST_ROWS, _WALKED // max(1, leaves)))
    )
    for kind in (RAW, NORMAL):
        expected = booster.predict(rows, kind, per_row=outputs)
        for size in (_ROWS, _LARGE):
            got = kernel.predict(np.resize(rows, (size, width)), kind, release=False)
            if not _same(got, np.resize(expected, (size, outputs))):
                return False
        singles = [kernel.predict(row[None], kind, release=False)[0] for row in rows[:_SINGLES]]
        if not _same(np.array(singles), expected[:_SINGLES]):
            return False
    few = rows[: 2 * _SINGLES]
    if not np.array_equal(
        kernel.predict(few, LEAF, release=False), booster.predict(few, LEAF, per_row=trees)
    ):
        return False
    return not kernel.explains or _explains_alike(kernel, booster, parsed, rows[:1])


def _explains_alike(kernel: Kernel, booster: Booster, parsed: ParsedModel, row: NDArray[np.float64]) -> bool:
    """
    Whether the contributions of *row* in *kernel* add up to the raw score, and are LightGBM's but for its errors.

    LightGBM's rounding errors have no bound on branches that test many different features; see `check_sums`. Their size
    shows in what its contributions lack to the raw score.
    """
    outputs, width = parsed.summary.n_outputs, len(parsed.summary.feature_names)
    shares = kernel.predict(row, CONTRIB, release=False)
    if not _off(shares, kernel.predict(row, RAW, release=False)) <= _CONTRIBUTION_ERROR * _size(shares):
        return False
    leaf_start = parsed.trees.leaf_start
    if leaf_start[-1] > _EXPLAINED:
        trees = int(np.searchsorted(leaf_start, _EXPLAINED))
        parsed = parsed.first(max(1, trees // outputs))
        first = make_kernel(parsed)
        if isinstance(first, Refusal) or not first.explains:
            return False
        kernel, booster = first, Booster(parsed.lightgbm_text(), width=width)
        shares = kernel.predict(row, CONTRIB, release=False)
    theirs = booster.predict(row, CONTRIB, per_row=outputs * (width + 1))
    allowed = _CONTRIBUTION_ERROR * _size(shares)
    allowed += _THEIR_ERROR * _off(theirs, kernel.predict(row, RAW, release=False))
    with np.errstate(over="ignore", invalid="ignore"):
        return not np.abs(shares - theirs).max() > allowed  # true also if theirs are not finite


def _off(shares: NDArray[np.float64], raw: NDArray[np.float64]) -> float:
    """What the contributions of one row lack to its raw scores, at most."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.abs(shares.reshape(raw.shape[1], -1).sum(axis=1) - raw[0]).max())


def _size(shares: NDArray[np.float64]) -> float:
    return max(float(np.abs(shares).max()), 1e-300)


def _same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool((np.ascontiguousarray(a).view(np.int64) == np.ascontiguousarray(b).view(np.int64)).all())
