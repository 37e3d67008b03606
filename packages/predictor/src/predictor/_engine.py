"""
Chooses the engine of a model: the native kernel if it is built and supports it, else LightGBM's library.

The kernel is an optional extension (`native/`). For a model that the kernel does not support, `make_kernel` returns a
named reason, and LightGBM computes the same numbers. By default the kernel uses the best instruction set of the
processor. The environment variable `PREDICTOR_ENGINE` overrides this: `lightgbm` does not use the extension at all;
`generic`, `avx2` or `avx512` is the kernel's instruction set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from predictor._model_file import ParsedModel
from predictor._native import CONTRIB, LEAF, NORMAL, RAW
from predictor.errors import EngineError, EngineUnavailable
from predictor.manifest import Label

try:
    from predictor import _kernel
except ImportError:  # no compiler when this was installed
    _kernel = None  # type: ignore[assignment]

__all__ = ["Kernel", "Refusal", "RefusalName", "cells_of", "default_level", "make_kernel", "switched_off"]

SETTING = "PREDICTOR_ENGINE"
LEVELS = ("avx512", "avx2", "generic")

RefusalName = Literal[
    "switched_off",
    "not_built",
    "level_not_here",
    "other_exp",
    "linear_trees",
    "averaged_trees",
    "objective",
    # Returned by native/plan.c:
    "no_memory",
    "bad_shape",
    "bad_threshold",
    "mixed_feature",
    "many_codes",
    "many_columns",
    "large_tables",
    "many_nodes",
    # Returned by `_runtime.py`, after the comparison with LightGBM:
    "self_check",
]
_REASONS: Mapping[RefusalName, str] = {
    "switched_off": f"{SETTING}=lightgbm",
    "not_built": "the extension is not installed; with a C compiler, install lightgbm-predictor again",
    "level_not_here": f"{SETTING} names an instruction set that this processor does not have",
    "other_exp": "the extension was linked with another exp() than this Python",
    "linear_trees": "the leaves hold linear models",
    "averaged_trees": "the model averages its trees (random forest)",
    "objective": "the kernel has no bit-exact output transform for this objective",
    "no_memory": "there was not enough memory for the tables",
    "bad_shape": "the trees have an unknown shape",
    "bad_threshold": "a threshold is not a number",
    "mixed_feature": "one feature is split as a number and as a category",
    "many_codes": "a feature has more than 65,000 thresholds or categories",
    "many_columns": "the splits need more than 65,000 columns",
    "large_tables": "the tables would take more than 256 MiB",
    "many_nodes": "there are more leaves than the kernel can count",
    "self_check": "the kernel gave other numbers than LightGBM on this machine",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the kernel does not serve a model."""

    name: RefusalName

    @property
    def reason(self) -> str:
        """The reason in words, for people."""
        return _REASONS[self.name]


class Kernel:
    """The kernel's plan of one model; immutable, needs no lock, and survives a fork."""

    def __init__(
        self, engine: Any, *, width: int, outputs: int, trees: int, splits: int, features: int
    ) -> None:
        """Use `make_kernel`."""
        about = engine.describe()
        self.level: str = about["level"]
        self.row_path: str = about["row"]  # words32, words64 or walk
        self.batch_path: str = about["batch"]  # blend, or as row_path
        self.explains: bool = about["nodes"] > 0
        self.bytes: int = about["bytes"]
        self.plain_row = engine.row
        self.plain_matrix = engine.matrix
        self.encoded_row = engine.numbers
        self._engine = engine
        self._calls = {NORMAL: engine.predict, RAW: engine.raw, CONTRIB: engine.explain}
        self._width, self._outputs, self._trees = width, outputs, trees
        # Four quadrature nodes take about 6 ns per split: 5 to 9 were measured, with AVX-512, AVX2 and neither.
        self._explain_ns: float = 100.0 + 6.0 * splits * max(about["nodes"], 4) / 4
        # A batch does one step per split, fills each column, and turns each feature that splits read into codes. This
        # estimate is 0.8 to 1.5 times the measured time (models of 100 to 1,000 trees, 1,024 rows, AVX2 and AVX-512).
        blend_ns = 20.0 + 0.0165 * splits + 0.3 * about["columns"] + 1.0 * features
        self.row_ns: float = about["row_ns"]
        """Estimated nanoseconds for a single row; see `estimate`."""
        is_blend = self.batch_path == "blend"
        self._batch_ns: float = blend_ns if is_blend else self.row_ns
        self._tile_ns: float = about["tile_ns"] if is_blend else 0.0

    def cost(self, kind: int) -> float:
        """Return the estimated nanoseconds per row of a large batch; decides on threads."""
        return self._explain_ns if kind == CONTRIB else self._batch_ns

    def estimate(self, rows: int, kind: int) -> float:
        """Return the estimated nanoseconds of a call; decides on releasing the GIL. Few rows take as long as a tile."""
        if kind == CONTRIB:
            return rows * self._explain_ns
        return rows * self._batch_ns + min(rows * self.row_ns, self._tile_ns)

    def most_rows(self, nanoseconds: float) -> int:
        """Return the most rows whose prediction takes less than so many nanoseconds, by `estimate`."""
        one_by_one = nanoseconds / (self._batch_ns + self.row_ns)
        return int(max(one_by_one, (nanoseconds - self._tile_ns) / self._batch_ns))

    def bind(self, cells: Any, *, hold_rows: int, most_rows: int) -> None:
        """
        Set, once, how `plain_row` and `plain_matrix` read cells.

        Args:
            cells: The result of `cells_of`.
            hold_rows: For more rows they, and `encoded_row`, release the GIL.
            most_rows: For more rows `plain_matrix` returns None.
        """
        self._engine.bind(cells, np.zeros(self._outputs), np.empty, hold_rows, most_rows)

    def predict(self, rows: NDArray[np.float64], kind: int, *, release: bool) -> NDArray[Any]:
        """
        Return for float64 *rows* [n, width] the array that LightGBM gives for *kind*, one line per row.

        That is int32 [n, trees] for LEAF, float64 [n, outputs * (width + 1)] for CONTRIB, else float64 [n, outputs].
        """
        if rows.dtype != np.float64 or rows.ndim != 2 or rows.shape[1] != self._width:
            raise EngineError(f"rows must be float64 [n, {self._width}]")
        if not rows.flags.carray:
            rows = np.require(rows, requirements=("C", "A"))
        if kind == LEAF:
            leaves = np.empty((len(rows), self._trees), dtype=np.int32)
            self._engine.leaves(rows, leaves, release)
            return leaves
        per_row = self._outputs * (self._width + 1) if kind == CONTRIB else self._outputs
        out = np.empty((len(rows), per_row), dtype=np.float64)
        self._calls[kind](rows, out, release)
        return out


def switched_off() -> bool:
    """Whether `PREDICTOR_ENGINE=lightgbm` says not to use the extension at all."""
    return _setting() == "lightgbm"


def make_kernel(parsed: ParsedModel, *, walk_only: bool = False) -> Kernel | Refusal:
    """
    Return the kernel for a checked model, or the reason why there is none.

    Args:
        parsed: The result of `parse_model_text`.
        walk_only: Make no fast tables. For tests of the plain tree walk, which serves models that have none.

    Raises:
        EngineUnavailable: `PREDICTOR_ENGINE` has an unknown value.
    """
    setting = _setting()
    if setting == "lightgbm":
        return Refusal("switched_off")
    if _kernel is None:
        return Refusal("not_built")
    if setting is not None and setting not in _kernel.levels():
        return Refusal("level_not_here")
    if not _exp_agrees():
        return Refusal("other_exp")
    summary = parsed.summary
    if summary.is_linear:
        return Refusal("linear_trees")
    if summary.average_output:
        return Refusal("averaged_trees")
    finish = _finish_of(summary.objective)
    if finish is None:
        return Refusal("objective")
    return _build(parsed, setting or default_level(), finish, walk_only=walk_only)


def default_level() -> str:
    """Return the best instruction set of this processor; needs the extension."""
    return _kernel.levels()[0]


def _build(
    parsed: ParsedModel, level: str, finish: tuple[int, float], *, walk_only: bool
) -> Kernel | Refusal:
    summary, trees, width = parsed.summary, parsed.trees, len(parsed.summary.feature_names)
    made: Any = _kernel.build(
        level=level,
        n_features=width,
        n_outputs=summary.n_outputs,
        finish=finish[0],
        scale=finish[1],
        walk_only=walk_only,
        leaves=np.diff(trees.leaf_start).astype(np.int32),
        feature=trees.split_feature,
        threshold=trees.threshold,
        decision=trees.decision_type,
        left=trees.left_child,
        right=trees.right_child,
        set_start=trees.category_start,
        set_size=trees.category_size.astype(np.int32),
        set_words=trees.category_words,
        leaf_value=trees.leaf_value,
        split_count=trees.internal_count.astype(np.float64),
        leaf_count=trees.leaf_count.astype(np.float64),
    )
    if isinstance(made, str):
        return Refusal(cast("RefusalName", made))  # a test compares the names
    return Kernel(
        made,
        width=width,
        outputs=summary.n_outputs,
        trees=summary.n_trees,
        splits=len(trees.split_feature),
        features=len(np.unique(trees.split_feature)),
    )


def cells_of(
    names: Sequence[str],
    *,
    nullable: Sequence[bool],
    infinite: bool,
    whole: Sequence[int],
    codes: Mapping[int, dict[Label, float]],
) -> Any:
    """
    Return the extension's reader of plain cells, or None without the extension.

    Args:
        names: The features' names, in model order.
        nullable: For each feature, whether None and NaN are allowed.
        infinite: Whether infinities are allowed, in every feature.
        whole: Indices of the features whose numbers must be whole.
        codes: For the index of each category feature, the code of each label.
    """
    if switched_off() or _kernel is None:
        return None
    flags = bytearray(_kernel.CELL_NULLABLE if allowed else 0 for allowed in nullable)
    if infinite:
        flags = bytearray(flag | _kernel.CELL_INFINITE for flag in flags)
    for index in whole:
        flags[index] |= _kernel.CELL_WHOLE
    for index in codes:
        flags[index] |= _kernel.CELL_CATEGORY
    dtypes = frozenset(
        map(np.dtype, ("float32", "int64", "int32", "int16", "int8", "uint32", "uint16", "uint8"))
    )
    tables = tuple(codes.get(index) for index in range(len(names)))
    return _kernel.Cells(tuple(names), bytes(flags), tables, np.ndarray, np.dtype("float64"), dtypes)


def _setting() -> str | None:
    value = os.environ.get(SETTING, "")
    if value not in ("", "lightgbm", *LEVELS):
        raise EngineUnavailable(f"{SETTING}={value[:20]!r} must be lightgbm, {', '.join(LEVELS)}, or not set")
    return value or None


@cache
def _exp_agrees() -> bool:
    """
    Whether the kernel's exp() gives the same bits as Python's.

    A compiler may link its own exp(). Golden rows would not show it: raw scores do not use exp(), and outputs are
    compared within 4 ulp only.
    """
    return all(_kernel.exp(x / 37) == math.exp(x / 37) for x in range(-1_000, 1_000, 7))


# The output transforms, numbered as in native/finish.h.
_NONE, _EXP, _SIGMOID, _SOFTMAX, _LOG1P_EXP, _SIGNED_SQUARE = range(6)
_FINISHES = {
    **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape"), _NONE),
    **dict.fromkeys(("lambdarank", "rank_xendcg"), _NONE),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), _EXP),
    **dict.fromkeys(("binary", "multiclassova", "cross_entropy"), _SIGMOID),
    "multiclass": _SOFTMAX,
    "cross_entropy_lambda": _LOG1P_EXP,
}


def _finish_of(objective: str | None) -> tuple[int, float] | None:
    """Return the objective's output transform and its parameter, or None if the kernel does not have it."""
    name, *options = (objective or "lambdarank").split(" ")
    finish, scale = _FINISHES.get(name), 1.0
    if finish is None:
        return None
    for option in options:
        if option == "sqrt" and name != "regression":
            return None  # LightGBM's other regression objectives treat `sqrt` differently
        if option == "sqrt":
            finish = _SIGNED_SQUARE
        if option.startswith("sigmoid:") and name != "cross_entropy":
            scale = _as_lightgbm_reads(option.removeprefix("sigmoid:"))
    return finish, scale


def _as_lightgbm_reads(text: str) -> float:
    """
    Return a positive number as LightGBM reads it from an objective's options.

    LightGBM adds the whole part and the fraction, and scales by powers of ten. Each step may round, so that for some
    numbers, such as 3.64029, the last bit is not that of `float(text)`.
    """
    mantissa, _, exponent = text.removeprefix("+").partition("e")
    whole, _, fraction = mantissa.partition(".")
    value = float(int(whole or "0")) + int(fraction or "0") / float(10 ** len(fraction))
    powers, is_below = abs(int(exponent or "0")), exponent.startswith("-")
    scale = 1.0
    for power in (50, 8, 1):
        times, powers = divmod(powers, power)
        for _ in range(times):
            scale *= float(10**power)
    return value / scale if is_below else value * scale
