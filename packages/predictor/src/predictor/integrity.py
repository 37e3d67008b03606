"""Verifies a model: its bytes by SHA-256, its structure by the manifest, its numbers by golden rows."""

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

_REMEDY = "use the manifest of this file, or make one with write_manifest"
OUTPUT_ULPS = 4  # the libm of another CPU may round exp differently; raw scores use no libm and must be equal


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of *data*, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def check_digest(found: str, expected: str) -> None:
    """
    Refuse a model whose SHA-256 *found* is not the *expected* one.

    Raises:
        IntegrityError: They differ, or *expected* is not a SHA-256.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise IntegrityError("sha256 must be 64 hex digits")
    if not hmac.compare_digest(found, expected.lower()):
        raise IntegrityError(
            f"the model file was changed: its SHA-256 begins with {found[:12]}, expected was"
            f" {expected[:12].lower()}; copy the file again, or make a new manifest if the change is intended"
        )


def check_manifest(text: ModelText, manifest: Manifest) -> None:
    """
    Refuse a manifest that describes another model than *text*.

    Raises:
        ManifestError: A name, order, kind, category code, objective, output kind or number of trees differs.
    """
    for what, stated, found in (
        ("features", len(manifest.features), len(text.feature_names)),
        ("trees (was an early-stopped model saved with all its rounds?)", manifest.n_trees, text.n_trees),
        ("outputs", manifest.n_outputs, text.n_outputs),
        ("objective", manifest.objective, text.objective),
        ("output kind", manifest.output, text.output),
    ):
        if stated != found:
            raise ManifestError(
                f"{what}: the manifest says {stated!r}, the model file has {found!r}; {_REMEDY}"
            )
    for index, (feature, name) in enumerate(zip(manifest.features, text.feature_names, strict=True)):
        if feature.model_name != name:
            raise ManifestError(
                f"feature {index}: the manifest says {feature.model_name!r}, the model has {name!r}; {_REMEDY}"
            )
        learned = set(text.codes.get(index, ()))
        if (feature.kind == "category") != (index in text.codes) and learned:
            raise ManifestError(
                f"feature {feature.name!r}: the model learned categories, the manifest says numbers; {_REMEDY}"
            )
        if not learned <= set(feature.codes or ()):
            raise ManifestError(
                f"feature {feature.name!r}: the model learned codes that the manifest does not list; {_REMEDY}"
            )


def check_bits(what: str, got: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """
    Refuse unless both arrays, float64 [n, k], are equal bit for bit.

    Raises:
        GoldenRowMismatch: They differ; the message names the first row.
    """
    _refuse_first(what, (got.view(np.int64) != expected.view(np.int64)).any(axis=1))


def check_ulps(what: str, got: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """Refuse unless both arrays, float64 [n, k], are equal within `OUTPUT_ULPS`; errors as `check_bits`."""
    unit = np.spacing(np.maximum(np.abs(got), np.abs(expected)))
    off: NDArray[np.bool_] = np.abs(got - expected) > OUTPUT_ULPS * unit
    _refuse_first(what, off.any(axis=1))


def _refuse_first(what: str, wrong: Any) -> None:
    if wrong.any():
        raise GoldenRowMismatch(
            f"{what}: golden row {int(wrong.argmax())} gives other numbers than when the manifest was made"
            f" ({int(wrong.sum())} of {len(wrong)} rows); do not serve this model on this machine"
        )


class Comparison:
    """Counts, block by block, the rows whose answer is not the expected one."""

    def __init__(self) -> None:
        self._rows = self._wrong = self._first = 0
        self._most, self._has_nan = 0.0, False

    def add(self, answers: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
        """
        Compare *answers* [n] or [n, outputs] with *expected* of the same shape.

        For a binary model, *expected* may be the probabilities of both classes, [n, 2].

        Raises:
            ManifestError: The shapes differ.
        """
        if expected.ndim == 2 and answers.ndim == 1:
            two = expected.shape[1] == 2
            answers = np.column_stack((1.0 - answers, answers)) if two else answers[:, None]
        if expected.shape != answers.shape:
            raise ManifestError(
                f"expected has the shape {expected.shape}, but the model's answers have {answers.shape}; pass the"
                " trained model's answers for these rows"
            )
        wrong = (expected != answers) & ~(np.isnan(expected) & np.isnan(answers))
        if wrong.any():
            rows = wrong.reshape(len(wrong), -1).any(axis=1)
            if not self._wrong:
                self._first = self._rows + int(rows.argmax())
            self._wrong += int(rows.sum())
            apart = np.abs(expected[wrong] - answers[wrong])
            is_nan = np.isnan(apart)  # one of the two is NaN, so there is no difference
            self._has_nan |= bool(is_nan.any())
            self._most = max(self._most, float(apart[~is_nan].max(initial=0.0)))
        self._rows += len(expected)

    def check(self, what: str) -> None:
        """
        Refuse the model unless every row of *what* has its expected answer, bit for bit.

        Raises:
            GoldenRowMismatch: A row has another answer.
        """
        if self._wrong:
            by = [f"by up to {self._most:g}"] if self._most else []
            by += ["NaN against a number"] if self._has_nan else []
            raise GoldenRowMismatch(
                f"{self._wrong} of {self._rows} {what} have another answer than expected, first row {self._first},"
                f" {' or '.join(by)}: the file is not the trained model (save it with all its rounds), or the trained"
                " object changes the answers of its trees (pred_early_stop, a subclass), or rows are not read as in"
                " training (check categories, names and the order of columns), or the expected answers were rounded"
                " (write all 17 digits)"
            )
