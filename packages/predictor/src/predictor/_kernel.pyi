# The C extension: plans of models and the calls on them. Optional; `_engine.py` is its one user.

from typing import Any

CELL_NULLABLE: int
CELL_WHOLE: int
CELL_CATEGORY: int
CELL_INFINITE: int

# The instruction sets that this machine can run, best first; the last is `generic`.
def levels() -> tuple[str, ...]: ...

# The exponential function that the kernel was linked with.
def exp(value: float, /) -> float: ...

# Whether *text* is fractions by RFC 8259, or infinities, parted by single spaces.
def are_floats(text: bytes, /) -> bool: ...

# Write the numbers of a *text* that passed `are_floats` into float64 *out*, correctly rounded; returns how many.
def to_floats(text: bytes, out: Any, /) -> int: ...

# Write whole numbers into int64 *out*; returns how many, or -1 where *text* is not whole numbers with single spaces.
def to_ints(text: bytes, out: Any, /) -> int: ...

# Where each tree of a file begins, into int64 *at* [trees + 1], and its leaves, into int32 *leaves* [trees], by the
# numbers of `tree_sizes`; False where that is not how the file is written.
def tree_heads(data: bytes, start: int, sizes: bytes, at: Any, leaves: Any, /) -> bool: ...

# Read the trees *first* to *end* into arrays of all trees, as `Trees` has them; *before* is how many words of category
# sets earlier ones have. Returns their text for LightGBM, their gains as text, and their words; None where one of them
# is not usual.
def read_trees(
    data: bytes, first: int, end: int, before: int, width: int, /, *arrays: Any
) -> tuple[bytes, bytes, bytes] | None: ...

class Cells:
    # Reads plain Python cells, by position or name.

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
    # Whether every cell of float64 [n, width], categories by their codes, is plain.
    def plain(self, matrix: Any, /) -> bool: ...

class Engine:
    # One model's plan. Immutable after `bind`; any number of threads may call it.

    # Once: how `row` reads cells, the array [n_outputs] whose copies it answers with, whether it lets the GIL go.
    def bind(self, cells: Cells, template: Any, release: bool, /) -> None: ...
    # Answer one row of plain cells, float64 [n_outputs]; None where a cell is not plain.
    def row(self, row: Any, /) -> Any | None: ...
    # Answer one row that is encoded already: numbers in model order.
    def numbers(self, row: Any, /) -> Any: ...
    # Write the objective's outputs of *rows*, float64 [n, width], into *out*, float64 [n, n_outputs].
    def predict(self, rows: Any, out: Any, release: bool, /) -> None: ...
    # Write raw scores; buffers as `predict`.
    def raw(self, rows: Any, out: Any, release: bool, /) -> None: ...
    # Write leaf numbers into *out*, int32 [n, n_trees].
    def leaves(self, rows: Any, out: Any, release: bool, /) -> None: ...
    # Write contributions and expected score into *out*, float64 [n, n_outputs, width + 1].
    def explain(self, rows: Any, out: Any, release: bool, /) -> None: ...
    # The level, the ways of one row and of batches, nodes of the quadrature (0: no contributions), bytes, columns.
    def describe(self) -> dict[str, Any]: ...

# Make a plan of trees given as flat arrays (see native/plan.h); a text names why there is none. Releases the GIL:
# nobody may write to the arrays meanwhile, because what was checked is what is used.
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
