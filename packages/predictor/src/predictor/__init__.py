"""LightGBM inference that never returns a silently wrong number: verified models, rows checked by name."""

from __future__ import annotations

from predictor._system import available_cpus
from predictor.batcher import Batcher, Prediction
from predictor.drift import AnswerDrift, DriftMonitor, FeatureDrift
from predictor.errors import (
    BatcherClosed,
    GoldenRowMismatch,
    IntegrityError,
    ManifestError,
    ModelError,
    ModelTextError,
    Overloaded,
    PredictorError,
    SchemaError,
    Unsupported,
)
from predictor.explain import Contribution, Explanation
from predictor.integrity import sha256_of
from predictor.manifest import Feature, GoldenRow, Manifest, Metric, RowPolicy, manifest_path
from predictor.manifest_writer import write_manifest
from predictor.model import Model, ModelInfo
from predictor.saving import save
from predictor.slot import Golden, ModelSlot

__all__ = [
    "AnswerDrift",
    "Batcher",
    "BatcherClosed",
    "Contribution",
    "DriftMonitor",
    "Explanation",
    "Feature",
    "FeatureDrift",
    "Golden",
    "GoldenRow",
    "GoldenRowMismatch",
    "IntegrityError",
    "Manifest",
    "ManifestError",
    "Metric",
    "Model",
    "ModelError",
    "ModelInfo",
    "ModelSlot",
    "ModelTextError",
    "Overloaded",
    "Prediction",
    "PredictorError",
    "RowPolicy",
    "SchemaError",
    "Unsupported",
    "available_cpus",
    "manifest_path",
    "save",
    "sha256_of",
    "write_manifest",
]
