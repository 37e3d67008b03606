"""Training of the model that the service ships: real bars, walk-forward evaluation, a manifest with honest figures."""

from __future__ import annotations

from ml_api.training.bars import TrainingDataMissing
from ml_api.training.train import MODEL_FILE, train

__all__ = ["MODEL_FILE", "TrainingDataMissing", "train"]
