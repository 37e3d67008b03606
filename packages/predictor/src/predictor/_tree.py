"""One tree of a LightGBM text model: every index in range, every node reached exactly once."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from predictor.errors import ModelTextError

__all__ = ["TreeSummary", "check_tree"]

# Characters first, because Python's own int() and float() also read "1_0", "\t1" and other scripts' digits.
_INTS = re.compile(r"[-0-9 ]*")
_FLOATS = re.compile(r"[-+0-9.e inf]*")
_CATEGORICAL, _MISSING = 0b0001, 0b1100  # bits of decision_type (LightGBM's tree.h)
_UINT32 = 1 << 32
# LightGBM's contributions recurse along a branch, over a table that grows by the square of the deepest one: at some
# ten thousand splits the process aborts. Trained trees stay far below.
_DEEPEST = 4_096
_N = TypeVar("_N", int, float)


@dataclass(frozen=True, slots=True)
class TreeSummary:
    """What the rest of the model needs to know about one tree."""

    splits: tuple[
        tuple[int, float, bool, bool], ...
    ]  # (feature index, gain, categorical?, missing values seen?)
    is_linear: bool


def check_tree(block: str, *, width: int) -> TreeSummary:
    """
    Check one `Tree=` block of a model over *width* features.

    Raises:
        ModelTextError: A missing or repeated line, a wrong length, an index out of range, a node that is
            reached twice or never, or a leaf whose value is not finite.
    """
    tree = _Tree(_lines(block))
    leaves = tree.whole("num_leaves")
    if leaves < 1:
        raise ModelTextError("num_leaves must be at least 1")
    nodes = leaves - 1
    if not all(map(math.isfinite, tree.floats("leaf_value", leaves))):
        raise ModelTextError("a leaf value is not finite")
    tree.floats("shrinkage", 1)
    # Not used to predict, but LightGBM aborts where their length is wrong.
    gains = tree.floats("split_gain", nodes, optional=True) or [0.0] * nodes
    for name, size in (
        ("leaf_weight", leaves),
        ("leaf_count", leaves),
        ("internal_value", nodes),
        ("internal_weight", nodes),
        ("internal_count", nodes),
    ):
        tree.floats(name, size, optional=True, empty=leaves == 1)

    features = tree.ints("split_feature", nodes, low=0, high=width - 1)
    decisions = tree.ints("decision_type", nodes, low=0, high=0b1011)  # missing type 3 does not exist
    thresholds = tree.floats("threshold", nodes)
    _check_shape(tree, leaves)
    _check_categories(tree, decisions, thresholds)
    is_linear = _check_linear(tree, leaves, width)
    return TreeSummary(
        splits=tuple(
            (feature, gain, bool(decision & _CATEGORICAL), bool(decision & _MISSING))
            for feature, gain, decision in zip(features, gains, decisions, strict=True)
        ),
        is_linear=is_linear,
    )


@dataclass(frozen=True, slots=True)
class _Tree:
    """The lines of one block by name, read as typed lists."""

    lines: Mapping[str, str]

    def _text(self, name: str, *, optional: bool = False) -> str | None:
        text = self.lines.get(name)
        if text is None and not optional:
            raise ModelTextError(f"line {name!r} is missing")
        return text

    def whole(self, name: str, *, optional: bool = False) -> int:
        text = self._text(name, optional=optional)
        if text is None:
            return 0
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise ModelTextError(f"line {name!r} must be a whole number")
        return int(text)

    def ints(self, name: str, size: int, *, low: int, high: int) -> list[int]:
        values = self._numbers(name, self._text(name) or "", _INTS, int, size)
        if values and not (low <= min(values) and max(values) <= high):
            raise ModelTextError(f"line {name!r} has an entry outside {low}..{high}")
        return values

    def floats(self, name: str, size: int, *, optional: bool = False, empty: bool = False) -> list[float]:
        text = self._text(name, optional=optional)
        if text is None or (empty and not text):
            return []
        return self._numbers(name, text, _FLOATS, float, size)

    def _numbers(
        self, name: str, text: str, letters: re.Pattern[str], read: Callable[[str], _N], size: int
    ) -> list[_N]:
        """Read *size* numbers parted by single spaces, which is how LightGBM counts them."""
        try:
            if letters.fullmatch(text) is None:
                raise ValueError
            values = list(map(read, text.split(" "))) if text else []
        except ValueError:
            raise ModelTextError(f"line {name!r} must be numbers") from None
        if len(values) != size:
            raise ModelTextError(f"line {name!r} has {len(values)} entries instead of {size}")
        return values


def _lines(block: str) -> dict[str, str]:
    found: dict[str, str] = {}
    body = block.rstrip("\n").split("\n")[1:]
    for line in body:
        key, equals, value = line.partition("=")
        if not equals or key == "Tree":
            raise ModelTextError(f"a line that is no 'name=value': {line[:40]!r}")
        if key in found:
            raise ModelTextError(f"line {key[:40]!r} appears twice")
        found[key] = value
    return found


def _check_shape(tree: _Tree, leaves: int) -> None:
    """
    Every node but the root has one parent, and a parent is numbered below its child.

    LightGBM numbers a node when it splits, so a child is always later: that order excludes cycles, which its walk
    would follow for ever.
    """
    nodes = leaves - 1
    left = tree.ints("left_child", nodes, low=-leaves, high=nodes - 1)
    right = tree.ints("right_child", nodes, low=-leaves, high=nodes - 1)
    depths = [1] * nodes
    for parent, children in enumerate(zip(left, right, strict=True)):
        for child in children:
            if 0 <= child <= parent:
                raise ModelTextError("a child points back to its parent (cycle)")
            if child > 0:
                depths[child] = depths[parent] + 1
    if nodes and sorted(left + right) != [child for child in range(-leaves, nodes) if child != 0]:
        raise ModelTextError("a node is reached twice or never")
    if max(depths, default=0) > _DEEPEST:
        raise ModelTextError(f"a branch of {max(depths)} splits, more than {_DEEPEST}")


def _check_categories(tree: _Tree, decisions: list[int], thresholds: list[float]) -> None:
    """A categorical split names a slice of a shared bit set; each slice must lie inside it."""
    num_cat = tree.whole("num_cat")
    chosen = [t for t, decision in zip(thresholds, decisions, strict=True) if decision & _CATEGORICAL]
    if any(not math.isfinite(t) or t != int(t) or not 0 <= t < num_cat for t in chosen):
        raise ModelTextError("a categorical split names a category set that does not exist")
    if num_cat == 0:
        return
    limits = tree.ints("cat_boundaries", num_cat + 1, low=0, high=_UINT32 - 1)
    if limits[0] != 0 or any(a > b for a, b in itertools.pairwise(limits)):
        raise ModelTextError("cat_boundaries must rise from 0")
    tree.ints("cat_threshold", limits[-1], low=0, high=_UINT32 - 1)


def _check_linear(tree: _Tree, leaves: int, width: int) -> bool:
    """Linear trees add a small regression to each leaf; its features are indices too."""
    if tree.whole("is_linear", optional=True) == 0:
        return False
    tree.floats("leaf_const", leaves)
    counts = tree.ints("num_features", leaves, low=0, high=width)
    squeezed = _Tree(
        {name: " ".join(tree.lines.get(name, "").split()) for name in ("leaf_features", "leaf_coeff")}
    )
    squeezed.ints("leaf_features", sum(counts), low=0, high=width - 1)
    squeezed.floats("leaf_coeff", sum(counts))
    # These two lines are read by std::stod, which aborts on what a normal float64 cannot hold, however small.
    if not all(map(_is_normal, f"{tree.lines['leaf_const']} {squeezed.lines['leaf_coeff']}".split())):
        raise ModelTextError("a linear leaf's constant or coefficient is infinite, not a number or subnormal")
    return True


def _is_normal(text: str) -> bool:
    """Whether *text* is zero or finite and larger than the smallest normal float64, also before rounding."""
    size = abs(float(text))
    return sys.float_info.min < size < math.inf or re.match(r"[-+]?[0.]+(?:e|$)", text) is not None
