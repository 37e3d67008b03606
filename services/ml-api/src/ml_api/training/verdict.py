"""Says in one sentence how good a trading model is, by the metrics in its manifest."""

from __future__ import annotations

from collections.abc import Mapping

from predictor import Metric

__all__ = ["verdict"]

# If the log loss is lower than the baseline's by less than this share, the skill is "hardly any".
_HARDLY = 0.01


def verdict(metrics: Mapping[str, Metric]) -> str:
    """
    Compare a model's out-of-sample log loss and direction accuracy with those of a baseline without skill.

    A model without these metrics is called unproven.
    """
    loss, direction = metrics.get("log_loss"), metrics.get("direction_accuracy")
    if loss is None or direction is None or not loss.baseline or direction.baseline is None:
        return "Unproven: its manifest has no figures beside a baseline; do not trade on it."
    gain = 1 - loss.model / loss.baseline
    figures = (
        f"log loss {abs(gain):.1%} {'better' if gain > 0 else 'worse'} than class frequencies, direction of a move "
        f"right in {direction.model:.1%} against {direction.baseline:.1%} without skill"
    )
    if direction.model <= direction.baseline or gain <= 0:
        return f"No skill to trade on: {figures}."
    if gain < _HARDLY:
        return f"Hardly any skill: {figures}."
    return f"Some skill on past data: {figures}."
