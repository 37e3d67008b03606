"""Reads the lines of a model file's trees, and writes the text of each tree for LightGBM."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._numbers import NumberLines, read_floats, read_ints
from predictor.errors import ModelTextError

__all__ = ["Table", "spread"]

_INT32 = (1 << 31) - 1
_COUNT = re.compile(rb"[0-9]{1,9}")
# The lines of a tree that LightGBM's loader knows. It silently ignores any other line. Such a line is refused here,
# because a later LightGBM may need it for right predictions.
_KNOWN = frozenset(
    b"num_leaves num_cat split_feature split_gain threshold decision_type left_child right_child leaf_value"
    b" leaf_weight leaf_count internal_value internal_weight internal_count cat_boundaries cat_threshold"
    b" is_linear leaf_const num_features leaf_features leaf_coeff shrinkage".split()
)
_OF_CATEGORIES = ("cat_boundaries", "cat_threshold")  # lines that only a tree with categorical splits has
# A tree without linear leaves, as LightGBM 3 and 4 write it. The groups k1 to k4 are the text that LightGBM gets.
_USUAL = re.compile(
    rb"(?P<k1>Tree=[0-9]+\nnum_leaves=(?P<num_leaves>[0-9]{1,9})\nnum_cat=(?P<num_cat>[0-9]{1,9})\n"
    rb"split_feature=(?P<split_feature>.*)\n)split_gain=(?P<split_gain>.*)\n"
    rb"(?P<k2>threshold=(?P<threshold>.*)\ndecision_type=(?P<decision_type>.*)\nleft_child=(?P<left_child>.*)\n"
    rb"right_child=(?P<right_child>.*)\nleaf_value=(?P<leaf_value>.*)\n)leaf_weight=(?P<leaf_weight>.*)\n"
    rb"(?P<k3>leaf_count=(?P<leaf_count>.*)\n)internal_value=(?P<internal_value>.*)\n"
    rb"internal_weight=(?P<internal_weight>.*)\n(?P<k4>internal_count=(?P<internal_count>.*)\n"
    rb"(?:cat_boundaries=(?P<cat_boundaries>.*)\ncat_threshold=(?P<cat_threshold>.*)\n)?(?:is_linear=0\n)?"
    rb"shrinkage=(?P<shrinkage>.*)\n)\n\n"
)
# The names of these groups in the order of `Match.groups()`.
_GROUPS = tuple(sorted(_USUAL.groupindex, key=_USUAL.groupindex.__getitem__))
_KEPT = ("k1", "k2", "k3", "k4")


class Table:
    """
    The lines of all trees, read column by column.

    Attributes:
        text: Per tree, the block that LightGBM gets.
        is_linear: Per tree, whether its leaves hold linear models.
        leaves: Per tree, the number of leaves, at least 1.
        nodes: Per tree, the number of splits: one less than leaves.
        sets: Per tree, the number of category sets.
    """

    def __init__(self, blocks: Iterable[bytes], *, width: int) -> None:
        """Read the `Tree=` blocks of a model with *width* features."""
        rows, linear = [], set[int]()
        for tree, block in enumerate(blocks):
            usual = _USUAL.fullmatch(block)
            if usual is not None and bool(usual["num_cat"].strip(b"0")) == (
                usual["cat_boundaries"] is not None
            ):
                rows.append(usual.groups())
                continue
            lines = _lines(block, tree)
            if _is_linear(lines, width, tree):
                linear.add(tree)
            lines["k1"] = _written(lines, is_linear=tree in linear, tree=tree)
            rows.append(tuple(map(lines.get, _GROUPS)))
        self._columns = dict(zip(_GROUPS, zip(*rows, strict=True), strict=True))
        kept = zip(*(self._columns[name] for name in _KEPT), strict=True)
        self.text = tuple(b"".join((*filter(None, parts), b"\n\n")) for parts in kept)
        self.is_linear = [tree in linear for tree in range(len(rows))]
        self.leaves = self._counts("num_leaves")
        if 0 in self.leaves:
            raise ModelTextError("num_leaves must be at least 1", tree=self.leaves.index(0))
        self.nodes = [count - 1 for count in self.leaves]
        self.sets = self._counts("num_cat")

    def __len__(self) -> int:
        return len(self.text)

    def _counts(self, name: str) -> list[int]:
        """Return the line *name* of each tree, which must be one whole number."""
        return [_count(text, name, tree) for tree, text in enumerate(self._columns[name])]

    def lines(self, name: str, sizes: Sequence[int], *, optional: bool = False) -> NumberLines:
        """Return the line *name* of each tree, of *sizes* numbers each; an *optional* line may be absent."""
        values: Sequence[bytes | None] = self._columns[name]
        if 0 in sizes and name in _OF_CATEGORIES:
            values = [value if size else b"" for value, size in zip(values, sizes, strict=True)]
        if optional and (None in values or 1 in self.leaves):
            # For a tree without splits, LightGBM omits such a line or leaves it empty.
            present = [
                value is not None and (value != b"" or leaves > 1)
                for value, leaves in zip(values, self.leaves, strict=True)
            ]
            sizes = [size if there else 0 for size, there in zip(sizes, present, strict=True)]
        elif None in values:
            raise ModelTextError(f"line {name!r} is missing", tree=values.index(None))
        return NumberLines(name, [value or b"" for value in values], sizes)

    def ints(self, name: str, sizes: Sequence[int], *, low: int, high: int) -> NDArray[np.int64]:
        """Return the whole numbers of all trees in the line *name*, each within *low*..*high*."""
        return read_ints(self.lines(name, sizes), low=low, high=high)

    def counts(self, name: str, sizes: Sequence[int]) -> NDArray[np.int32]:
        """Return how many training rows reached each node or leaf; zeros for a tree without this line."""
        lines = self.lines(name, sizes, optional=True)
        found = read_ints(lines, low=0, high=_INT32).astype(np.int32)
        return spread(found, lines.sizes, sizes)


def spread(numbers: NDArray[Any], found: Sequence[int], sizes: Sequence[int]) -> NDArray[Any]:
    """
    Spread the numbers of some trees over all trees, with zeros for the others.

    *sizes* is the number of entries of each tree; *found* is the same, or 0 for a tree that has no numbers.
    """
    whole = np.zeros(sum(sizes), numbers.dtype)
    whole[np.repeat(np.array(found) > 0, sizes)] = numbers
    return whole


def _lines(block: bytes, tree: int) -> dict[str, bytes]:
    """Return the lines of one block by name, without the first line, `Tree=`, which the caller has checked."""
    _, _, body = block.rstrip(b"\n").partition(b"\n")
    lines = body.split(b"\n")
    try:
        found: dict[bytes, bytes] = dict(line.split(b"=", 1) for line in lines)
    except ValueError:
        line = next(line for line in lines if b"=" not in line)
        raise ModelTextError(
            f"a line is not 'name=value': {line[:40].decode('ascii', 'replace')!r}", tree=tree
        ) from None
    if len(found) != len(lines):
        names = [line.partition(b"=")[0] for line in lines]
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelTextError(f"line {twice[:40].decode('ascii', 'replace')!r} appears twice", tree=tree)
    if not found.keys() <= _KNOWN:
        unknown = min(found.keys() - _KNOWN)
        raise ModelTextError(
            f"line {unknown[:40].decode('ascii', 'replace')!r} is not one that LightGBM 3 or 4 writes",
            tree=tree,
        )
    return {name.decode(): value for name, value in found.items()}


def _is_linear(lines: dict[str, bytes], width: int, tree: int) -> bool:
    """Return whether the tree has linear leaves, after checking their constants, features and coefficients."""
    if _count(lines.get("is_linear", b"0"), "is_linear", tree) == 0:
        return False
    leaves = _count(lines.get("num_leaves"), "num_leaves", tree)
    for name in ("leaf_features", "leaf_coeff"):  # LightGBM writes an extra space for each leaf
        lines[name] = b" ".join(filter(None, lines.get(name, b"").split(b" ")))

    def line(name: str, size: int) -> NumberLines:
        if name not in lines:
            raise ModelTextError(f"line {name!r} is missing")
        return NumberLines(name, [lines[name]], [size])

    try:
        read_floats(line("leaf_const", leaves))
        total = int(read_ints(line("num_features", leaves), low=0, high=width).sum())
        read_ints(line("leaf_features", total), low=0, high=width - 1)
        read_floats(line("leaf_coeff", total))
    except ModelTextError as error:
        raise ModelTextError(error.reason, tree=tree) from error
    # LightGBM reads these two lines by std::stod, which throws on infinite and subnormal numbers: the process aborts.
    if not all(
        map(_is_normal, filter(None, b" ".join((lines["leaf_const"], lines["leaf_coeff"])).split(b" ")))
    ):
        raise ModelTextError(
            "a constant or coefficient of a linear leaf is infinite, not a number or subnormal", tree=tree
        )
    return True


def _count(text: bytes | None, name: str, tree: int) -> int:
    """Return the whole number that is the value *text* of the line *name*."""
    if text is None:
        raise ModelTextError(f"line {name!r} is missing", tree=tree)
    if not _COUNT.fullmatch(text):
        raise ModelTextError(f"line {name!r} must be a whole number", tree=tree)
    return int(text)


def _is_normal(text: bytes) -> bool:
    """
    Whether *text* is zero, or finite and larger than the smallest normal float64.

    That one itself is excluded, because a smaller number may have been rounded up to it.
    """
    size = abs(float(text))
    return sys.float_info.min < size < math.inf or re.match(rb"[-+]?[0.]+(?:e|$)", text) is not None


def _written(lines: Mapping[str, bytes], *, is_linear: bool, tree: int) -> bytes:
    """Write one tree for LightGBM: the lines that predictions and contributions need, without the final blank lines."""
    names = (
        *(
            "num_leaves",
            "num_cat",
            "split_feature",
            "threshold",
            "decision_type",
            "left_child",
            "right_child",
        ),
        *("leaf_value", "leaf_count", "internal_count"),
        *(("cat_boundaries", "cat_threshold") if lines.get("num_cat", b"").strip(b"0") else ()),
        *(("is_linear", "leaf_const", "num_features", "leaf_features", "leaf_coeff") if is_linear else ()),
        "shrinkage",
    )
    body = b"".join(b"%b=%b\n" % (name.encode(), lines[name]) for name in names if name in lines)
    return b"Tree=%d\n%b" % (tree, body)
