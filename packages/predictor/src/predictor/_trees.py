"""
The trees of a model file as flat arrays: every index in range, every node reached exactly once.

`parse_trees` also writes the text that LightGBM is given: the lines that were checked, in LightGBM's own order, and no
other. Lines that no prediction or contribution depends on (weights, values and gains of inner nodes) are left out.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._numbers import NumberLines, read_floats, read_ints, to_floats
from predictor.errors import ModelTextError

__all__ = ["CATEGORICAL", "MISSING", "Trees", "parse_trees"]

CATEGORICAL, MISSING = 0b0001, 0b1100  # bits of decision_type (LightGBM's tree.h)
_UINT32 = 1 << 32
_INT32 = (1 << 31) - 1
_COUNT = re.compile(rb"[0-9]{1,9}")
_LONG_NUMBER = re.compile(rb"[0-9]{300}")
# LightGBM's contributions recurse along a branch, over a table that grows by the square of the deepest one: at some
# ten thousand splits the process aborts. Trained trees stay far below.
_DEEPEST = 4_096
# Lines of a tree that LightGBM's loader knows. A line of another name would be dropped by it without a word; as it
# may be one that a later LightGBM needs to predict right, it is refused.
_KNOWN = frozenset(
    b"num_leaves num_cat split_feature split_gain threshold decision_type left_child right_child leaf_value"
    b" leaf_weight leaf_count internal_value internal_weight internal_count cat_boundaries cat_threshold"
    b" is_linear leaf_const num_features leaf_features leaf_coeff shrinkage".split()
)
_OF_CATEGORIES = ("cat_boundaries", "cat_threshold")  # lines that only a tree with categorical splits has
# A tree as LightGBM 3 and 4 write it, unless its leaves are linear. The groups k1 to k4 are what is kept for LightGBM.
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Trees:
    """
    All trees of a model, checked, in flat arrays; tree `t` has the nodes `node_start[t]:node_start[t + 1]`.

    A tree of L leaves has L - 1 nodes; its root is its first node, and a tree of one leaf has none. Nodes and leaves
    are numbered within their tree. Everything is as in the file: what LightGBM does with it is LightGBM's tree.h.
    Three arrays of fractions are converted from text when they are first asked for: `threshold`, `leaf_value` and
    `split_gain`; that costs about as much as everything else.
    """

    node_start: NDArray[np.int64]  # [trees + 1]
    leaf_start: NDArray[np.int64]  # [trees + 1]
    split_feature: NDArray[np.int32]  # [nodes]: position of the feature in the model
    decision_type: NDArray[
        np.uint8
    ]  # [nodes]: bit 0 categorical, bit 1 missing goes left, bits 2-3 what is missing
    left_child: NDArray[np.int32]  # [nodes]: >= 0 a node of this tree, < 0 the leaf ~child
    right_child: NDArray[np.int32]  # [nodes]
    internal_count: NDArray[np.int32]  # [nodes]: training rows; zeros where the file has none
    leaf_count: NDArray[np.int32]  # [leaves]: training rows; zeros where the file has none
    category_start: NDArray[np.int64]  # [nodes]: first word of a categorical split in category_words; else 0
    category_size: NDArray[np.int64]  # [nodes]: how many words; 0 for a numeric split
    category_words: NDArray[np.uint32]  # bit c % 32 of word c // 32: category c goes left
    is_linear: NDArray[np.bool_]  # [trees]: leaves hold regressions, which are not in these arrays
    text: tuple[bytes, ...]  # [trees]: the block that LightGBM is given
    threshold_text: bytes = field(repr=False)
    leaf_value_text: bytes = field(repr=False)
    split_gain_text: bytes = field(repr=False)
    split_gain_sizes: tuple[int, ...] = field(repr=False)  # [trees]: 0 where a tree has no such line

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def threshold(self) -> NDArray[np.float64]:
        """[nodes]: a numeric split sends x <= threshold left; it may be infinite."""
        return to_floats(self.threshold_text)

    @cached_property
    def leaf_value(self) -> NDArray[np.float64]:
        """[leaves]: finite."""
        return to_floats(self.leaf_value_text)

    @cached_property
    def split_gain(self) -> NDArray[np.float64]:
        """[nodes]: zeros where the file has none."""
        found, sizes = self.split_gain_sizes, np.diff(self.node_start)
        return _spread(to_floats(self.split_gain_text), found, sizes.tolist())

    def tree_of(self, node: int) -> int:
        """Return the tree that the node at position *node* of the arrays belongs to."""
        return int(np.searchsorted(self.node_start, node, side="right")) - 1


def parse_trees(blocks: Iterable[bytes], *, width: int) -> Trees:
    """
    Check the `Tree=` blocks of a model over *width* features and return them as arrays.

    Raises:
        ModelTextError: A missing, repeated or unknown line, a wrong length, an index out of range, a node that is
            reached twice or never, or a leaf whose value is not finite; `tree` says where.

    Cost: some 10 ns a byte.
    """
    table = _Table([_Block.read(block, tree, width) for tree, block in enumerate(blocks)])
    node_start, leaf_start = _starts(table.nodes), _starts(table.leaves)
    leaf_value = _finite(read_floats(table.lines("leaf_value", table.leaves)), leaf_start)
    read_floats(table.lines("shrinkage", [1] * len(table.blocks)))
    for name, sizes in (
        ("leaf_weight", table.leaves),
        ("internal_value", table.nodes),
        ("internal_weight", table.nodes),
    ):  # not given to LightGBM; a wrong length tells of a damaged file
        table.lines(name, sizes, optional=True).joined()
    decision_type = table.ints(
        "decision_type", table.nodes, low=0, high=0b1011
    )  # missing type 3 does not exist
    threshold = read_floats(table.lines("threshold", table.nodes))
    left = table.ints("left_child", table.nodes, low=-_INT32, high=_INT32)
    right = table.ints("right_child", table.nodes, low=-_INT32, high=_INT32)
    _check_shape(left, right, node_start, leaf_start)
    start, size, words = _categories(table, decision_type, threshold, node_start)
    gains = table.lines("split_gain", table.nodes, optional=True)
    return Trees(
        node_start=node_start,
        leaf_start=leaf_start,
        split_feature=table.ints("split_feature", table.nodes, low=0, high=width - 1).astype(np.int32),
        decision_type=decision_type.astype(np.uint8),
        left_child=left.astype(np.int32),
        right_child=right.astype(np.int32),
        internal_count=table.counts("internal_count", table.nodes),
        leaf_count=table.counts("leaf_count", table.leaves),
        category_start=start,
        category_size=size,
        category_words=words,
        is_linear=np.array([block.is_linear for block in table.blocks], dtype=np.bool_),
        text=tuple(block.text for block in table.blocks),
        threshold_text=threshold,
        leaf_value_text=leaf_value,
        split_gain_text=read_floats(gains),
        split_gain_sizes=tuple(gains.sizes),
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """One tree: its lines by name, and the text of it that LightGBM is given."""

    lines: Mapping[str, bytes | None]
    text: bytes
    is_linear: bool

    @classmethod
    def read(cls, block: bytes, tree: int, width: int) -> _Block:
        """Read the `Tree=` block of tree number *tree*."""
        usual = _USUAL.fullmatch(block)
        if usual is not None and bool(usual["num_cat"].strip(b"0")) == (usual["cat_boundaries"] is not None):
            return cls(usual.groupdict(), b"".join((*usual.group("k1", "k2", "k3", "k4"), b"\n\n")), False)
        lines = _lines(block, tree)
        is_linear = _is_linear(lines, width, tree)
        return cls(lines, _written(lines, tree, is_linear=is_linear), is_linear)

    def count(self, name: str, tree: int) -> int:
        """Return a line that is one whole number."""
        text = self.lines.get(name)
        if text is None:
            raise ModelTextError(f"line {name!r} is missing", tree=tree)
        if not _COUNT.fullmatch(text):
            raise ModelTextError(f"line {name!r} must be a whole number", tree=tree)
        return int(text)


class _Table:
    """The lines of all trees, read column by column."""

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self.blocks = blocks
        self.leaves = [block.count("num_leaves", tree) for tree, block in enumerate(blocks)]
        if 0 in self.leaves:
            raise ModelTextError("num_leaves must be at least 1", tree=self.leaves.index(0))
        self.nodes = [count - 1 for count in self.leaves]

    def lines(self, name: str, sizes: Sequence[int], *, optional: bool = False) -> NumberLines:
        """Return the line *name* of each tree, empty where a tree needs none; an *optional* one may be absent."""
        values = [block.lines.get(name) for block in self.blocks]
        if 0 in sizes and name in _OF_CATEGORIES:
            values = [value if size else b"" for value, size in zip(values, sizes, strict=True)]
        if optional:
            # LightGBM leaves the counts of a tree without splits out, or writes them empty.
            present = [
                value is not None and (value != b"" or leaves > 1)
                for value, leaves in zip(values, self.leaves, strict=True)
            ]
            sizes = [size if there else 0 for size, there in zip(sizes, present, strict=True)]
        elif None in values:
            raise ModelTextError(f"line {name!r} is missing", tree=values.index(None))
        return NumberLines(name, [value or b"" for value in values], sizes)

    def ints(self, name: str, sizes: Sequence[int], *, low: int, high: int) -> NDArray[np.int64]:
        return read_ints(self.lines(name, sizes), low=low, high=high)

    def counts(self, name: str, sizes: Sequence[int]) -> NDArray[np.int32]:
        """Return how many training rows reached each node or leaf; zeros where a tree does not say."""
        lines = self.lines(name, sizes, optional=True)
        found = read_ints(lines, low=0, high=_INT32).astype(np.int32)
        return _spread(found, lines.sizes, sizes)


def _finite(text: bytes, leaf_start: NDArray[np.int64]) -> bytes:
    """
    Refuse leaf values of which one is infinite, and return them.

    What is spelled without an exponent, or with a negative one, and in fewer than 300 digits, is finite; so nearly
    every file passes without a conversion.
    """
    if b"i" in text or text.count(b"e") != text.count(b"e-") or _LONG_NUMBER.search(text):
        infinite = ~np.isfinite(to_floats(text))
        if infinite.any():
            tree = int(np.searchsorted(leaf_start, int(infinite.argmax()), side="right")) - 1
            raise ModelTextError("a leaf value is not finite", tree=tree)
    return text


def _spread(numbers: NDArray[Any], found: Sequence[int], sizes: Sequence[int]) -> NDArray[Any]:
    """Put the numbers of the trees that have them in their places, zeros in the others'."""
    whole = np.zeros(sum(sizes), numbers.dtype)
    whole[np.repeat(np.array(found) > 0, sizes)] = numbers
    return whole


def _starts(sizes: Sequence[int]) -> NDArray[np.int64]:
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def _lines(block: bytes, tree: int) -> dict[str, bytes]:
    """Return the lines of one block by name; its first, `Tree=`, was read by the caller."""
    _, _, body = block.rstrip(b"\n").partition(b"\n")
    lines = body.split(b"\n")
    try:
        found: dict[bytes, bytes] = dict(line.split(b"=", 1) for line in lines)
    except ValueError:
        line = next(line for line in lines if b"=" not in line)
        raise ModelTextError(
            f"a line that is no 'name=value': {line[:40].decode('ascii', 'replace')!r}", tree=tree
        ) from None
    if len(found) != len(lines):
        names = [line.partition(b"=")[0] for line in lines]
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelTextError(f"line {twice[:40].decode('ascii', 'replace')!r} appears twice", tree=tree)
    if not found.keys() <= _KNOWN:
        unknown = min(found.keys() - _KNOWN)
        raise ModelTextError(
            f"line {unknown[:40].decode('ascii', 'replace')!r} is none that LightGBM 3 or 4 writes", tree=tree
        )
    return {name.decode(): value for name, value in found.items()}


def _check_shape(
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    node_start: NDArray[np.int64],
    leaf_start: NDArray[np.int64],
) -> None:
    """
    Every node but the root has one parent, and a parent is numbered below its child.

    LightGBM numbers a node when it splits, so a child is always later: that order excludes cycles, which its walk
    would follow for ever.
    """
    sizes = np.diff(node_start)
    nodes = np.arange(len(left))
    first, first_leaf = np.repeat(node_start[:-1], sizes), np.repeat(leaf_start[:-1], sizes)
    size = np.repeat(sizes, sizes)

    def refuse(wrong: NDArray[np.bool_], reason: str) -> None:
        if wrong.any():
            tree = int(np.searchsorted(node_start, int(wrong.argmax()), side="right")) - 1
            raise ModelTextError(reason, tree=tree)

    node_hits, leaf_hits = np.zeros(len(left), np.int64), np.zeros(int(leaf_start[-1]), np.int64)
    for name, child in (("left_child", left), ("right_child", right)):
        refuse(
            (child < -size - 1) | (child >= size),
            f"line {name!r} has an entry outside its tree's nodes and leaves",
        )
        refuse((child >= 0) & (child <= nodes - first), "a child points back to its parent (cycle)")
        inner = child >= 0
        node_hits += np.bincount((child + first)[inner], minlength=len(left))
        leaf_hits += np.bincount((first_leaf - child - 1)[~inner], minlength=len(leaf_hits))
    roots = node_start[:-1][sizes > 0]
    node_hits[roots] += 1  # a root is reached from outside
    leaf_hits[leaf_start[:-1][sizes == 0]] += 1  # and so is the one leaf of a tree without splits
    refuse(node_hits != 1, "a node is reached twice or never")
    if (leaf_hits != 1).any():
        tree = int(np.searchsorted(leaf_start, int((leaf_hits != 1).argmax()), side="right")) - 1
        raise ModelTextError("a leaf is reached twice or never", tree=tree)
    level, depth = roots, 0
    while len(level):
        depth += 1
        if depth > _DEEPEST:
            tree = int(np.searchsorted(node_start, int(level[0]), side="right")) - 1
            raise ModelTextError(f"a branch of more than {_DEEPEST} splits", tree=tree)
        children = np.concatenate((left[level], right[level]))
        level = (children + np.concatenate((first[level], first[level])))[children >= 0]


def _categories(
    table: _Table, decision_type: NDArray[np.int64], threshold: bytes, node_start: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    """Return where each categorical split's slice of the shared bit sets begins, its size, and the bit sets."""
    num_cat = [block.count("num_cat", tree) for tree, block in enumerate(table.blocks)]
    start, size = np.zeros(len(decision_type), np.int64), np.zeros(len(decision_type), np.int64)
    nodes = np.flatnonzero(decision_type & CATEGORICAL)
    tree_of = np.searchsorted(node_start, nodes, side="right") - 1
    chosen = _chosen_sets(threshold, nodes)
    # Written so that what is not a number is wrong too.
    right = (chosen >= 0) & (chosen < np.array(num_cat)[tree_of]) & (chosen == np.floor(chosen))
    if not right.all():
        raise ModelTextError(
            "a categorical split names a category set that does not exist", tree=int(tree_of[~right][0])
        )
    with_sets = [tree for tree, count in enumerate(num_cat) if count]
    if not with_sets:
        return start, size, np.empty(0, np.uint32)
    counts = [count + 1 if count else 0 for count in num_cat]
    limits = read_ints(table.lines("cat_boundaries", counts), low=0, high=_INT32)
    firsts = _starts([counts[tree] for tree in with_sets])
    falls = np.diff(limits) < 0
    falls[firsts[1:-1] - 1] = False  # from one tree to the next they may
    if limits[firsts[:-1]].any() or falls.any():
        raise ModelTextError("cat_boundaries must rise from 0")
    lengths = [0] * len(num_cat)
    for tree, last in zip(with_sets, limits[firsts[1:] - 1].tolist(), strict=True):
        lengths[tree] = last
    words = read_ints(table.lines("cat_threshold", lengths), low=0, high=_UINT32 - 1).astype(np.uint32)
    at = firsts[np.searchsorted(np.array(with_sets), tree_of)] + chosen.astype(np.int64)
    start[nodes] = _starts(lengths)[tree_of] + limits[at]
    size[nodes] = limits[at + 1] - limits[at]
    return start, size, words


def _chosen_sets(threshold: bytes, nodes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the numbers at the positions *nodes* of *threshold*: for a categorical split, the number of its set."""
    if not len(nodes):
        return np.empty(0, np.float64)
    tokens = threshold.split(b" ")
    return np.array([float(tokens[node]) for node in nodes.tolist()])


def _is_linear(lines: dict[str, bytes], width: int, tree: int) -> bool:
    """Check the small regressions that a linear tree adds to its leaves; their features are indices too."""
    block = _Block({"is_linear": b"0", **lines}, b"", False)
    if block.count("is_linear", tree) == 0:
        return False
    leaves = block.count("num_leaves", tree)
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
    # These two lines are read by std::stod, which aborts on what a normal float64 cannot hold, however small.
    if not all(
        map(_is_normal, filter(None, b" ".join((lines["leaf_const"], lines["leaf_coeff"])).split(b" ")))
    ):
        raise ModelTextError(
            "a linear leaf's constant or coefficient is infinite, not a number or subnormal", tree=tree
        )
    return True


def _is_normal(text: bytes) -> bool:
    """Whether *text* is zero or finite and larger than the smallest normal float64, also before rounding."""
    size = abs(float(text))
    return sys.float_info.min < size < math.inf or re.match(rb"[-+]?[0.]+(?:e|$)", text) is not None


def _written(lines: Mapping[str, bytes], tree: int, *, is_linear: bool) -> bytes:
    """Write one tree for LightGBM: the lines above that it computes with, and the blank ones it ends with."""
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
    return b"Tree=%d\n%b\n\n" % (tree, body)
