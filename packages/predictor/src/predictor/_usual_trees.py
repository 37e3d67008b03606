"""
Reads the trees of a model file with the extension, in one pass, if they are laid out as LightGBM 3 and 4 write them.

`_trees.py` accepts the same trees and makes the same arrays; a test compares the two. It reads all other files, and
every file if the extension is not built. Only `_trees.py` refuses a file, so each error has one text.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

try:
    from predictor import _kernel
except ImportError:  # no compiler when this was installed
    _kernel = None  # type: ignore[assignment]

__all__ = ["usual_trees"]

_PIECE = 1 << 20
"""Bytes of text that are read in one call, which holds the GIL for some milliseconds."""


def usual_trees(data: bytes, start: int, sizes: bytes, *, width: int) -> dict[str, Any] | None:
    """
    Return the fields of `Trees`, or None if a tree is not in the usual layout.

    Args:
        data: The whole file.
        start: The offset of the first `Tree=` line.
        sizes: The value of the header line `tree_sizes`.
        width: The number of features.
    """
    if os.environ.get("PREDICTOR_ENGINE") == "lightgbm" or _kernel is None:
        return None
    count = sizes.count(b" ") + 1
    at, leaves = np.zeros(count + 1, np.int64), np.zeros(count, np.int32)
    if not _kernel.tree_heads(data, start, sizes, at, leaves):
        return None
    node_start, leaf_start = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    np.cumsum(leaves, out=leaf_start[1:])
    np.cumsum(leaves - 1, out=node_start[1:])
    if leaf_start[-1] > len(data):  # more than the file could hold
        return None
    nodes, n_leaves = int(node_start[-1]), int(leaf_start[-1])
    per_node = {
        name: np.zeros(nodes, np.int32)
        for name in ("split_feature", "left_child", "right_child", "internal_count")
    }
    leaf_count, category_size = np.zeros(n_leaves, np.int32), np.zeros(nodes, np.int32)
    decision_type, category_start = np.zeros(nodes, np.uint8), np.zeros(nodes, np.int64)
    threshold, leaf_value = np.zeros(nodes), np.zeros(n_leaves)
    text_sizes = np.zeros(count, np.int64)
    texts, gains, words = list[bytes](), list[bytes](), list[bytes]()
    first, n_words = 0, 0
    while first < count:
        end = max(first + 1, int(np.searchsorted(at, at[first] + _PIECE, side="right")) - 1)
        read = _kernel.read_trees(
            *(data, first, end, n_words, width, at, leaves, node_start, leaf_start),
            *(*per_node.values(), leaf_count, category_size, decision_type, category_start),
            *(threshold, leaf_value, text_sizes),
        )
        if read is None:
            return None
        for pieces, piece in zip((texts, gains, words), read, strict=True):
            pieces.append(piece)
        first, n_words = end, n_words + len(read[2]) // 4
    return {
        **per_node,
        "node_start": node_start,
        "leaf_start": leaf_start,
        "decision_type": decision_type,
        "leaf_count": leaf_count,
        "category_start": category_start,
        "category_size": category_size,
        "category_words": np.frombuffer(b"".join(words), np.uint32),
        "threshold": threshold,
        "leaf_value": leaf_value,
        "is_linear": np.zeros(count, np.bool_),
        "text": b"".join(texts),
        "text_sizes": text_sizes,
        "split_gain_text": b"".join(gains)[:-1],
        "split_gain_sizes": tuple((leaves - 1).tolist()),
    }
