"""Training of the service's own model: real bars, walk-forward evaluation, and a manifest with the results."""

from __future__ import annotations

from ml_api.training.bars import TrainingDataMissing
from ml_api.training.train import MODEL_FILE, train

__all__ = ["MODEL_FILE", "TrainingDataMissing", "train"]
