"""Before the kernel serves a model: every way it can answer, against LightGBM on rows that are hard on this model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from predictor._engine import Kernel
from predictor._model_file import ParsedModel
from predictor._native import CONTRIB, LEAF, NORMAL, RAW, Booster
from predictor._trees import CATEGORICAL, Trees

__all__ = ["agrees", "hard_rows"]

_ROWS = 65  # a small tile and one row
_LARGE = 257  # a large tile and one row
_SINGLES = 8
_ODD = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-36, -1e-35, -1.0, 3.9, 1e12)
_CONTRIBUTION_ERROR = 1e-10  # of the largest contribution; measured are a few 1e-15


def hard_rows(trees: Trees, *, width: int, count: int = _ROWS) -> NDArray[np.float64]:
    """Return float64 [count, width]: values on and beside splits, nulls, zeros, categories; always the same."""
    rows = np.zeros((count, width))
    numeric = (trees.decision_type & CATEGORICAL) == 0
    for feature in range(width):
        own = trees.split_feature == feature
        cuts = np.unique(trees.threshold[own & numeric])[:200]
        pool = np.concatenate([cuts, np.nextafter(cuts, np.inf), np.nextafter(cuts, -np.inf), _ODD])
        if (own & ~numeric).any():
            pool = np.concatenate([np.arange(64.0), _ODD])
        # Steps that share no factor with most sizes, so that rows mix the values of different features.
        rows[:, feature] = pool[(np.arange(count) * 37 + feature * 101 + np.arange(count) // 7) % len(pool)]
    return rows


def agrees(kernel: Kernel, booster: Booster, parsed: ParsedModel) -> bool:
    """
    Whether *kernel* gives LightGBM's numbers: all bit for bit, but contributions to 1e-10 of the largest.

    Asks for one row, both sizes of tile and their remainders. Cost: some 150 rows in LightGBM, 2 ms at 300 trees.
    """
    text = parsed.summary
    width, outputs, trees = len(text.feature_names), text.n_outputs, text.n_trees
    rows = hard_rows(parsed.trees, width=width)
    many = np.resize(rows, (_LARGE, width))
    for kind in (RAW, NORMAL):
        expected = booster.predict(rows, kind, per_row=outputs)
        for batch in (rows, many):
            got = kernel.predict(batch, kind, release=False)
            if not _same(got, np.resize(expected, (len(batch), outputs))):
                return False
        singles = [kernel.predict(row[None], kind, release=False)[0] for row in rows[:_SINGLES]]
        if not _same(np.array(singles), expected[:_SINGLES]):
            return False
    few = rows[: 2 * _SINGLES]
    if not np.array_equal(
        kernel.predict(few, LEAF, release=False), booster.predict(few, LEAF, per_row=trees)
    ):
        return False
    if kernel.explains:
        shares = booster.predict(rows[:1], CONTRIB, per_row=outputs * (width + 1))
        error = np.abs(kernel.predict(rows[:1], CONTRIB, release=False) - shares).max()
        return bool(error <= _CONTRIBUTION_ERROR * max(float(np.abs(shares).max()), 1e-300))
    return True


def _same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool((np.ascontiguousarray(a).view(np.int64) == np.ascontiguousarray(b).view(np.int64)).all())
