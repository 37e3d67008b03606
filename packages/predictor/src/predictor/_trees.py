"""
Checks the trees of a model file (indices in range, each node reached exactly once) and holds them as arrays.

`parse_trees` also writes the text that LightGBM gets: only lines that were checked, in LightGBM's order. It omits lines
that no prediction or contribution depends on (weights, and values and gains of inner nodes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from predictor._numbers import read_floats, read_ints, to_floats
from predictor._tree_lines import Table, spread
from predictor._usual_trees import usual_trees
from predictor.errors import ModelTextError

__all__ = ["CATEGORICAL", "MISSING", "Trees", "parse_trees"]

CATEGORICAL, MISSING = 0b0001, 0b1100  # bits of decision_type (LightGBM's tree.h)
_COUNT = re.compile(r"[0-9]{1,9}")
_UINT32 = 1 << 32
_INT32 = (1 << 31) - 1
# For contributions LightGBM recurses along a branch, with a table as large as the square of the deepest branch. At
# about ten thousand splits the process aborts. Trained trees are far less deep.
_DEEPEST = 4_096


@dataclass(frozen=True, kw_only=True, eq=False)
class Trees:
    """
    All trees of a model, checked, in flat arrays; tree `t` has the nodes `node_start[t]:node_start[t + 1]`.

    A tree of L leaves has L - 1 nodes (splits). Its root is its first node; a tree of one leaf has no node. Nodes and
    leaves are numbered from 0 in each tree. The values are those of the file; LightGBM's tree.h defines their meaning.
    `split_gain` is converted from text on first use, because no prediction needs it.
    """

    node_start: NDArray[np.int64]  # [trees + 1]
    leaf_start: NDArray[np.int64]  # [trees + 1]
    split_feature: NDArray[np.int32]  # [nodes]: position of the feature in the model
    # [nodes]: bit 0 categorical, bit 1 missing values go left, bits 2-3 what is missing (0 nothing, 1 zero, 2 NaN)
    decision_type: NDArray[np.uint8]
    left_child: NDArray[np.int32]  # [nodes]: >= 0 a node of this tree, < 0 the leaf ~child
    right_child: NDArray[np.int32]  # [nodes]
    internal_count: NDArray[np.int32]  # [nodes]: training rows; zeros if the file does not say
    leaf_count: NDArray[np.int32]  # [leaves]: training rows; zeros if the file does not say
    category_start: NDArray[np.int64]  # [nodes]: first word of a categorical split in category_words; else 0
    category_size: NDArray[np.int32]  # [nodes]: how many words; 0 for a numeric split
    category_words: NDArray[np.uint32]  # bit c % 32 of word c // 32 is 1 if category c goes left
    threshold: NDArray[np.float64]  # [nodes]: a numeric split sends x <= threshold left; may be infinite
    leaf_value: NDArray[np.float64]  # [leaves]: finite
    is_linear: NDArray[np.bool_]  # [trees]: the leaves hold linear models, which are not in these arrays
    text: bytes = field(repr=False)  # the blocks that LightGBM gets, one after the other
    text_sizes: NDArray[np.int64]  # [trees]: the bytes of each block
    split_gain_text: bytes = field(repr=False)
    split_gain_sizes: tuple[int, ...] = field(repr=False)  # [trees]: 0 for a tree without this line

    def __len__(self) -> int:
        return len(self.text_sizes)

    @cached_property
    def split_gain(self) -> NDArray[np.float64]:
        """[nodes]: the gain of each split; zeros if the file does not say."""
        found, sizes = self.split_gain_sizes, np.diff(self.node_start)
        return spread(to_floats(self.split_gain_text), found, sizes.tolist())

    def first(self, count: int) -> Trees:
        """Return the first *count* trees."""
        count = min(count, len(self))
        nodes, leaves = int(self.node_start[count]), int(self.leaf_start[count])
        gains = sum(self.split_gain_sizes[:count])
        return replace(
            self,
            node_start=self.node_start[: count + 1],
            leaf_start=self.leaf_start[: count + 1],
            split_feature=self.split_feature[:nodes],
            decision_type=self.decision_type[:nodes],
            left_child=self.left_child[:nodes],
            right_child=self.right_child[:nodes],
            internal_count=self.internal_count[:nodes],
            leaf_count=self.leaf_count[:leaves],
            category_start=self.category_start[:nodes],
            category_size=self.category_size[:nodes],
            is_linear=self.is_linear[:count],
            text=self.text[: int(self.text_sizes[:count].sum())],
            text_sizes=self.text_sizes[:count],
            threshold=self.threshold[:nodes],
            leaf_value=self.leaf_value[:leaves],
            split_gain_text=_head(self.split_gain_text, gains),
            split_gain_sizes=self.split_gain_sizes[:count],
        )

    def tree_of(self, node: int) -> int:
        """Return the number of the tree to which position *node* of the arrays belongs."""
        return int(np.searchsorted(self.node_start, node, side="right")) - 1


def parse_trees(data: bytes, start: int, sizes: str, *, width: int) -> tuple[Trees, int]:
    """
    Check the trees of a model file; return them as arrays, and the offset in *data* where they end.

    Args:
        data: The whole file.
        start: The offset of the first `Tree=` line.
        sizes: The value of the header line `tree_sizes`.
        width: The number of features.

    Raises:
        ModelTextError: A line is missing, repeated, unknown or of the wrong length; an index is out of range; a node is
            reached twice or never; or a leaf value is not finite. `tree` says where.

    Cost: linear in the size of the file.
    """
    usual = usual_trees(data, start, sizes.encode(), width=width)
    if usual is not None:
        end = start + sum(map(int, sizes.split(" ")))
        return Trees(**usual), end
    blocks, end = _blocks(data, start, sizes)
    return _read_blocks(blocks, width=width), end


def _blocks(data: bytes, start: int, sizes: str) -> tuple[list[bytes], int]:
    """Split the trees by `tree_sizes`, as LightGBM does; each size must be exactly that of its tree."""
    texts = sizes.split(" ")
    if not all(map(_COUNT.fullmatch, texts)):
        raise ModelTextError("tree_sizes must be whole numbers")
    blocks: list[bytes] = []
    for index, size in enumerate(map(int, texts)):
        block = data[start : start + size]
        if len(block) < size or not block.endswith(b"\n\n") or not block.startswith(b"Tree=%d\n" % index):
            raise ModelTextError("its bytes do not match tree_sizes (cut off or edited)", tree=index)
        if not block.isascii():
            raise ModelTextError("text that is not ASCII", tree=index)
        blocks.append(block)
        start += size
    return blocks, start


def _read_blocks(blocks: Iterable[bytes], *, width: int) -> Trees:
    """Check and read trees in any layout, line by line."""
    table = Table(blocks, width=width)
    node_start, leaf_start = _starts(table.nodes), _starts(table.leaves)
    leaf_value = _finite(to_floats(read_floats(table.lines("leaf_value", table.leaves))), leaf_start)
    read_floats(table.lines("shrinkage", [1] * len(table)))
    # LightGBM does not get these lines, but a wrong length shows that the file is damaged.
    for name, sizes in (
        ("leaf_weight", table.leaves),
        ("internal_value", table.nodes),
        ("internal_weight", table.nodes),
    ):
        table.lines(name, sizes, optional=True).joined()
    # Missing type 3 does not exist.
    decision_type = table.ints("decision_type", table.nodes, low=0, high=0b1011)
    threshold = to_floats(read_floats(table.lines("threshold", table.nodes)))
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
        category_size=size.astype(np.int32),
        category_words=words,
        is_linear=np.array(table.is_linear, dtype=np.bool_),
        text=b"".join(table.text),
        text_sizes=np.array(list(map(len, table.text)), np.int64),
        threshold=threshold,
        leaf_value=leaf_value,
        split_gain_text=read_floats(gains),
        split_gain_sizes=tuple(gains.sizes),
    )


def _head(text: bytes, count: int) -> bytes:
    """Return the first *count* numbers of *text*."""
    return b" ".join(text.split(b" ", count)[:count])


def _finite(values: NDArray[np.float64], leaf_start: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return *values*, the leaf values, if all are finite."""
    infinite = ~np.isfinite(values)
    if infinite.any():
        tree = int(np.searchsorted(leaf_start, int(infinite.argmax()), side="right")) - 1
        raise ModelTextError("a leaf value is not finite", tree=tree)
    return values


def _starts(sizes: Sequence[int]) -> NDArray[np.int64]:
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def _check_shape(
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    node_start: NDArray[np.int64],
    leaf_start: NDArray[np.int64],
) -> None:
    """
    Check that each node but the root has one parent, and that the parent's number is smaller.

    LightGBM numbers nodes in the order of splitting, so a child always has the larger number. This order excludes
    cycles, in which a tree walk would never end.
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
    # A root has no parent; nor has the only leaf of a tree without splits.
    roots = node_start[:-1][sizes > 0]
    node_hits[roots] += 1
    leaf_hits[leaf_start[:-1][sizes == 0]] += 1
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
    table: Table,
    decision_type: NDArray[np.int64],
    threshold: NDArray[np.float64],
    node_start: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    """Return `category_start`, `category_size` and `category_words` of `Trees`."""
    num_cat = table.sets
    start, size = np.zeros(len(decision_type), np.int64), np.zeros(len(decision_type), np.int64)
    nodes = np.flatnonzero(decision_type & CATEGORICAL)
    tree_of = np.searchsorted(node_start, nodes, side="right") - 1
    chosen = threshold[nodes]  # in a categorical split, the threshold is the number of its category set
    right = (chosen >= 0) & (chosen < np.array(num_cat)[tree_of]) & (chosen == np.floor(chosen))
    if not right.all():
        raise ModelTextError(
            "a categorical split names a category set that does not exist", tree=int(tree_of[~right][0])
        )
    # LightGBM writes a set for each split. If splits could share one, the file's text would not limit their memory.
    order = np.lexsort((chosen, tree_of))
    again = (np.diff(tree_of[order]) == 0) & (np.diff(chosen[order]) == 0)
    if again.any():
        raise ModelTextError("two splits name the same category set", tree=int(tree_of[order][1:][again][0]))
    with_sets = [tree for tree, count in enumerate(num_cat) if count]
    if not with_sets:
        return start, size, np.empty(0, np.uint32)
    counts = [count + 1 if count else 0 for count in num_cat]
    limits = read_ints(table.lines("cat_boundaries", counts), low=0, high=_INT32)
    firsts = _starts([counts[tree] for tree in with_sets])
    falls = np.diff(limits) < 0
    falls[firsts[1:-1] - 1] = False  # each tree begins at 0 again
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
