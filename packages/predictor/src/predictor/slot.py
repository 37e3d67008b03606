"""Holds the model being served, and replaces it without a gap."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from predictor.errors import ModelError
from predictor.manifest import Manifest
from predictor.model import Model, ModelInfo

__all__ = ["Golden", "ModelSlot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Rows and the raw scores a new model must give for them, bit for bit, beyond those in its manifest."""

    rows: Sequence[Any]
    raw: Sequence[Sequence[float]]  # [n, n_classes]


class ModelSlot:
    """
    The model being served. Readers take `current` once per request and use that one throughout.

    A swap replaces one reference, so a reader has the old model or the new one. The old model's memory is
    freed when its last reader lets go; what rollback keeps of it is its text.
    """

    def __init__(self, model: Model) -> None:
        self._current = model
        self._previous: tuple[bytes, Manifest | None, int, int | None] | None = None
        self._swapping = threading.Lock()

    @property
    def current(self) -> Model:
        """The model being served now."""
        return self._current

    def swap(
        self,
        path: str | os.PathLike[str],
        *,
        manifest: Manifest | str | os.PathLike[str] | None = None,
        sha256: str | None = None,
        golden: Golden | None = None,
        other_signature: bool = False,
    ) -> ModelInfo:
        """
        Serve the model at *path* from now on, after every check of `Model.load` and *golden*.

        Args:
            path: As for `Model.load`, like *manifest* and *sha256*.
            golden: Rows and scores of the caller's own.
            other_signature: Whether the new model may name other features, order them otherwise, or give other
                outputs. Callers that give rows in the old order, or rows that wait in a `Batcher` meanwhile,
                would then be answered for another row than they meant.

        Returns:
            What is now served.

        Raises:
            ModelError, OSError: Any check failed; the old model is still served, untouched.

        One swap at a time; readers never wait. Cost: as `Model.load`, on the calling thread.
        """
        with self._swapping:
            new = Model.load(path, manifest=manifest, sha256=sha256, threads=self._current.threads)
            if not other_signature:
                self.check_signature(new)
            if golden is not None:
                new.check_golden(golden.rows, golden.raw)
            return self._replace(new)

    def check_signature(self, model: Model) -> None:
        """
        Make sure that rows and answers mean the same to *model* as to the model being served.

        For callers of `adopt`; `swap` does this unless it is told not to.

        Raises:
            ModelError: *model* has other features, another order of them, or other outputs; the message says which.
        """
        _refuse_other_signature(self._current.info, model.info)

    def adopt(self, model: Model) -> ModelInfo:
        """
        Serve *model*, loaded and checked by the caller, from now on; also one of another signature.

        For swaps in two steps, where several processes must have loaded a model before any of them serves it.
        """
        with self._swapping:
            return self._replace(model)

    def rollback(self) -> ModelInfo:
        """
        Serve the model before the last swap again, verified anew from memory; a second call swaps forth.

        Raises:
            ModelError: There was no swap, or the old model no longer verifies.
        """
        with self._swapping:
            if self._previous is None:
                raise ModelError("nothing to roll back to: this slot has held one model only")
            data, manifest, threads, iterations = self._previous
            return self._replace(Model(data, manifest=manifest, threads=threads, num_iteration=iterations))

    def _replace(self, new: Model) -> ModelInfo:
        old = self._current
        self._previous = (old.data, old.manifest, old.threads, old.num_iteration)
        self._current = new
        return new.info


def _refuse_other_signature(old: ModelInfo, new: ModelInfo) -> None:
    """Refuse a model to which the rows and answers of the old one mean something else."""
    for what, before, now in (
        ("features", old.features, new.features),
        ("output kind", old.output, new.output),
        ("number of outputs", old.n_classes, new.n_classes),
        ("classes", old.classes, new.classes),
    ):
        if before and before != now:  # classes may be given a model that had none
            raise ModelError(
                f"{what}: {_shown(before)} is served, the new model has {_shown(now)}; if its callers know, "
                "pass other_signature=True"
            )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
