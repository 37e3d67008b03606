"""Times a model on different rows: repeating one row would train the processor's branch predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from predictor.model import Model

__all__ = ["time_model"]

_BATCHES = (8, 64, 1024)
_ROUNDS = 50


def time_model(model: Model, rows: Sequence[Any], *, calls: int) -> Iterator[str]:
    """Yield one line of text per kind of call, with p50 and p99 in microseconds per call."""
    model.predict_row(rows[0])
    yield f"{'call':<14} {'p50 us':>10} {'p99 us':>10}"
    yield _line("one row", [_timed(model.predict_row, rows[index % len(rows)]) for index in range(calls)])
    matrix = model.encode(rows)
    for size in _BATCHES:
        batches = (
            np.take(matrix, np.arange(n * size, (n + 1) * size), axis=0, mode="wrap") for n in range(_ROUNDS)
        )
        yield _line(f"batch {size}", [_timed(model.predict_encoded, batch) for batch in batches])
    if not model.is_linear:
        yield _line(
            "explain 1",
            [_timed(model.explain, [rows[index % len(rows)]]) for index in range(_ROUNDS)],
        )


def _timed(call: Any, argument: Any) -> int:
    start = perf_counter_ns()
    call(argument)
    return perf_counter_ns() - start


def _line(name: str, nanoseconds: list[int]) -> str:
    p50, p99 = np.percentile(nanoseconds, (50, 99)) / 1e3
    return f"{name:<14} {p50:>10.1f} {p99:>10.1f}"
