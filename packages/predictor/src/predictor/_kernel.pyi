# The optional C extension. It makes a plan of a model (tables for fast prediction), predicts with it, and reads model
# files and rows. `_engine.py`, `_numbers.py` and `_usual_trees.py` use it.

from typing import Any

CELL_NULLABLE: int
CELL_WHOLE: int
CELL_CATEGORY: int
CELL_INFINITE: int

# The instruction sets that this machine can run, best first; the last is `generic`.
def levels() -> tuple[str, ...]: ...

# The exponential function that the kernel was linked with.
def exp(value: float, /) -> float: ...

# Whether *text* is numbers as RFC 8259 (JSON) writes them, or infinities, separated by single spaces.
def are_floats(text: bytes, /) -> bool: ...

# Write the numbers of *text*, which `are_floats` accepted, into float64 *out*, correctly rounded; returns the count.
def to_floats(text: bytes, out: Any, /) -> int: ...

# Write whole numbers into int64 *out*; returns the count, or -1 if *text* is not whole numbers with single spaces.
def to_ints(text: bytes, out: Any, /) -> int: ...

# Find the trees by *sizes*, the value of `tree_sizes`: write each tree's offset into int64 *at* [trees + 1] and its
# number of leaves into int32 *leaves* [trees]. False if the file is not laid out so.
def tree_heads(data: bytes, start: int, sizes: bytes, at: Any, leaves: Any, /) -> bool: ...

# Read the trees *first* to *end* (exclusive) into the arrays of all trees that `Trees` describes; *before* is the
# number of category words of the earlier trees. Returns these trees' text for LightGBM, split gains as text, and
# category words; None if a tree is not in LightGBM's usual layout.
def read_trees(
    data: bytes, first: int, end: int, before: int, width: int, /, *arrays: Any
) -> tuple[bytes, bytes, bytes] | None: ...

class Cells:
    # Reads rows of plain Python cells, by position or by name.

    def __init__(
        self,
        names: tuple[str, ...],
        flags: bytes,
        codes: tuple[dict[Any, float] | None, ...],
        array_type: type,
        float64: Any,
        dtypes: frozenset[Any],
    ) -> None: ...
    # Fill *out* [n, width] from *start* on; returns the first row that is not plain, or n.
    def rows(self, rows: list[Any], out: Any, start: int, /) -> int: ...
    # Fill one column of *out* [n, width]; returns the first cell that is not plain, or n.
    def column(self, values: list[Any], feature: int, out: Any, /) -> int: ...
    # Whether every cell of float64 *matrix* [n, width] is plain; categories are given by their codes.
    def plain(self, matrix: Any, /) -> bool: ...

class Engine:
    # One model's plan. Immutable after `bind`; any number of threads may call it.

    # Call once. Sets how `row` and `matrix` read cells; the array [n_outputs] of which each answer of `row` is a copy;
    # numpy.empty; for how many rows, at most, they keep the GIL; and for how many `matrix` gives an answer.
    def bind(self, cells: Cells, template: Any, empty: Any, hold_rows: int, most_rows: int, /) -> None: ...
    # Predict one row of plain cells: float64 [n_outputs], or None if a cell is not plain.
    def row(self, row: Any, /) -> Any | None: ...
    # Predict a float64 array [n, width] of plain cells: float64 [n] or [n, n_outputs]. None if a cell is not plain,
    # there are too many rows, or it is another kind of array.
    def matrix(self, rows: Any, /) -> Any | None: ...
    # Predict one encoded row: numbers in model order.
    def numbers(self, row: Any, /) -> Any: ...
    # Write the objective's outputs of *rows*, float64 [n, width], into *out*, float64 [n, n_outputs].
    def predict(self, rows: Any, out: Any, release: bool, /) -> None: ...
    # Write raw scores; buffers as `predict`.
    def raw(self, rows: Any, out: Any, release: bool, /) -> None: ...
    # Write leaf numbers into *out*, int32 [n, n_trees].
    def leaves(self, rows: Any, out: Any, release: bool, /) -> None: ...
    # Write contributions and expected score into *out*, float64 [n, n_outputs, width + 1].
    def explain(self, rows: Any, out: Any, release: bool, /) -> None: ...
    # The instruction set, the method for one row and for batches, the number of quadrature nodes (0: no contributions),
    # the plan's bytes, its columns, and the groups of features that share a table of words (0: single rows are walked);
    # and estimates in nanoseconds: of one of a few rows, and of a tile, with AVX-512.
    def describe(self) -> dict[str, Any]: ...

# Make a plan of trees given as flat arrays (see native/plan.h); returns a `RefusalName` if there is none. It checks the
# arrays and then reads them with the GIL released: no other thread may write to them meanwhile.
def build(
    *,
    level: str,
    n_features: int,
    n_outputs: int,
    leaves: Any,
    feature: Any,
    threshold: Any,
    decision: Any,
    left: Any,
    right: Any,
    set_start: Any,
    set_size: Any,
    set_words: Any,
    leaf_value: Any,
    split_count: Any,
    leaf_count: Any,
    finish: int,
    scale: float,
    walk_only: bool,
) -> Engine | str: ...
