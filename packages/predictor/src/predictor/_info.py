"""Describes a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from predictor._engine import Kernel, Refusal
from predictor._model_file import ModelText
from predictor._native import engine_name
from predictor._objectives import OutputKind
from predictor.manifest import Label, Manifest
from predictor.schema import RowSchema

__all__ = ["ModelInfo", "model_info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Describes a loaded model, for logs, `/health` and people."""

    name: str
    version: str  # from the manifest; without one, `sha256:` and the first 12 hex digits
    sha256: str
    features: tuple[str, ...]  # in model order
    categories: Mapping[str, tuple[Label, ...]]  # category feature -> the labels rows may use
    classes: tuple[Label, ...]  # in output order; a binary model's probability is that of classes[1]
    n_classes: int  # values per row: 1 for regression and binary models
    n_trees: int
    objective: str | None
    output: OutputKind
    engine: str  # such as `native kernel (avx2)` or `LightGBM 4.7.0 (C API)`
    engine_reason: str = ""  # why the kernel does not serve, as `name: reason`; empty if it does


def model_info(
    digest: str, text: ModelText, schema: RowSchema, manifest: Manifest | None, kernel: Kernel | Refusal
) -> ModelInfo:
    """Describe the checked model whose bytes have the SHA-256 *digest*."""
    return ModelInfo(
        name=manifest.name if manifest is not None else "unnamed",
        version=manifest.version if manifest is not None else f"sha256:{digest[:12]}",
        sha256=digest,
        features=schema.names,
        categories={f.name: f.categories for f in schema.features if f.categories is not None},
        classes=manifest.classes if manifest is not None else (),
        n_classes=text.n_outputs,
        n_trees=text.n_trees,
        objective=text.objective,
        output=text.output,
        engine=engine_name() if isinstance(kernel, Refusal) else f"native kernel ({kernel.level})",
        engine_reason=f"{kernel.name}: {kernel.reason}" if isinstance(kernel, Refusal) else "",
    )
