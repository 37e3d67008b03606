"""The verdict on a trading model follows its metrics, and is "Unproven" without them."""

from __future__ import annotations

import pytest

from ml_api.training.verdict import verdict
from predictor import Metric


@pytest.mark.parametrize(
    ("loss", "direction", "begins"),
    [
        (1.0892, 0.5597, "No skill to trade on: log loss 0.4% better than class frequencies"),
        (1.2000, 0.6500, "No skill to trade on: log loss 9.7% worse"),
        (1.0892, 0.6000, "Hardly any skill: log loss 0.4% better"),
        (0.9000, 0.6500, "Some skill on past data: log loss 17.7% better"),
    ],
)
def test_the_verdict_follows_the_figures(loss: float, direction: float, begins: str) -> None:
    metrics = {
        "log_loss": Metric(model=loss, baseline=1.0934),
        "direction_accuracy": Metric(model=direction, baseline=0.5774),
    }
    assert verdict(metrics).startswith(begins)
    assert f"right in {direction:.1%} against 57.7% without skill." in verdict(metrics)


@pytest.mark.parametrize(
    "metrics", [{}, {"log_loss": Metric(model=1.0)}, {"direction_accuracy": Metric(model=0.9, baseline=0.5)}]
)
def test_a_model_without_metrics_beside_a_baseline_is_unproven(metrics: dict[str, Metric]) -> None:
    assert verdict(metrics).startswith("Unproven")
