"""Verifies a model: its bytes by SHA-256, its shape by the manifest, its numbers by golden rows."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor._model_file import ModelText
from predictor.errors import GoldenRowMismatch, IntegrityError, ManifestError
from predictor.manifest import Manifest

__all__ = ["Comparison", "check_bits", "check_digest", "check_manifest", "check_ulps", "sha256_of"]

OUTPUT_ULPS = 4  # another CPU's libm may round exp differently; trees and their sums may not


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of *data*, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def check_digest(found: str, expected: str) -> None:
    """
    Refuse a model whose SHA-256 *found* is not the *expected* one.

    Raises:
        IntegrityError: One bit differs, or *expected* is no SHA-256.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise IntegrityError("sha256 must be 64 hex digits")
    if not hmac.compare_digest(found, expected.lower()):
        raise IntegrityError(
            f"the model file was changed: its SHA-256 begins {found[:12]}, {expected[:12].lower()} was promised;"
            " copy the file again, or make a new manifest if the change is meant"
        )


def check_manifest(text: ModelText, manifest: Manifest) -> None:
    """
    Refuse a manifest that describes another model than *text*.

    Raises:
        ManifestError: A name, order, kind, category code, objective, output kind or number of trees differs.
    """
    for what, told, found in (
        ("features", len(manifest.features), len(text.feature_names)),
        ("trees (was an early-stopped model saved with all its rounds?)", manifest.n_trees, text.n_trees),
        ("outputs", manifest.n_outputs, text.n_outputs),
        ("objective", manifest.objective, text.objective),
        ("output kind", manifest.output, text.output),
    ):
        if told != found:
            raise ManifestError(f"{what}: the manifest says {told!r}, the model file has {found!r}")
    for index, (feature, name) in enumerate(zip(manifest.features, text.feature_names, strict=True)):
        if feature.model_name != name:
            raise ManifestError(
                f"feature {index}: the manifest says {feature.model_name!r}, the model has {name!r}"
            )
        learned = set(text.codes.get(index, ()))
        if (feature.kind == "category") != (index in text.codes) and learned:
            raise ManifestError(
                f"feature {feature.name!r}: the model learned categories, the manifest says numbers"
            )
        if not learned <= set(feature.codes or ()):
            raise ManifestError(
                f"feature {feature.name!r}: the model learned codes that the manifest does not list"
            )


def check_bits(what: str, got: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """
    Refuse unless both arrays, float64 [n, k], are equal bit for bit.

    Raises:
        GoldenRowMismatch: Naming the first row that differs.
    """
    _refuse_first(what, (got.view(np.int64) != expected.view(np.int64)).any(axis=1))


def check_ulps(what: str, got: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """Refuse unless both arrays, float64 [n, k], agree within `OUTPUT_ULPS`; raises as `check_bits`."""
    unit = np.spacing(np.maximum(np.abs(got), np.abs(expected)))
    off: NDArray[np.bool_] = np.abs(got - expected) > OUTPUT_ULPS * unit
    _refuse_first(what, off.any(axis=1))


def _refuse_first(what: str, wrong: Any) -> None:
    if wrong.any():
        raise GoldenRowMismatch(
            f"{what}: golden row {int(wrong.argmax())} gives other numbers than when the model was made"
            f" ({int(wrong.sum())} of {len(wrong)} rows); do not serve this model here"
        )


class Comparison:
    """Counts the rows whose answer is not the expected one, block by block."""

    def __init__(self) -> None:
        self._rows = self._wrong = self._first = 0
        self._most, self._has_nan = 0.0, False

    def add(self, answers: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
        """
        Compare *answers* [n] or [n, outputs] with *expected*: as many, or two classes' for one probability.

        Raises:
            ManifestError: The shapes do not fit.
        """
        if expected.ndim == 2 and answers.ndim == 1:
            two = expected.shape[1] == 2
            answers = np.column_stack((1.0 - answers, answers)) if two else answers[:, None]
        if expected.shape != answers.shape:
            raise ManifestError(
                f"expected has the shape {expected.shape}, the model answers {answers.shape}: one for each row"
            )
        wrong = (expected != answers) & ~(np.isnan(expected) & np.isnan(answers))
        if wrong.any():
            rows = wrong.reshape(len(wrong), -1).any(axis=1)
            if not self._wrong:
                self._first = self._rows + int(rows.argmax())
            self._wrong += int(rows.sum())
            apart = np.abs(expected - answers)[wrong]
            is_nan = np.isnan(apart)  # one of the two is NaN: then there is no difference to measure
            self._has_nan |= bool(is_nan.any())
            self._most = max(self._most, float(apart[~is_nan].max(initial=0.0)))
        self._rows += len(expected)

    def check(self, what: str) -> None:
        """
        Refuse the model unless every row of *what* has its expected answer, bit for bit.

        Raises:
            GoldenRowMismatch: One has another.
        """
        if self._wrong:
            by = [f"by up to {self._most:g}"] if self._most else []
            by += ["NaN against a number"] if self._has_nan else []
            raise GoldenRowMismatch(
                f"{self._wrong} of {self._rows} {what} have another answer than expected, first row {self._first},"
                f" {' or '.join(by)}: the file is not the trained model (was it saved with all its rounds?), it"
                " changes its trees' answers (pred_early_stop, a subclass), or rows are read otherwise than in"
                " training (are categories or names told right?)"
            )
