"""Names the columns of a model's answers."""

from __future__ import annotations

from predictor.model import ModelInfo

__all__ = ["output_names"]


def output_names(info: ModelInfo, *, is_raw: bool) -> tuple[str, ...]:
    """Return a name for each output of a row: `prediction`, `p_<class>`, `raw`, or `raw_<class>`."""
    if info.n_classes > 1:
        labels = info.classes or tuple(range(info.n_classes))
        return tuple(f"{'raw' if is_raw else 'p'}_{label}" for label in labels)
    if is_raw:
        return ("raw",)
    return (f"p_{info.classes[1]}",) if info.classes else ("prediction",)
