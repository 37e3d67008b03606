"""Holds the served model, and replaces it without interrupting readers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from predictor._fork_lock import ForkLock
from predictor.errors import ModelError
from predictor.manifest import Manifest
from predictor.model import Model, ModelInfo

__all__ = ["Golden", "ModelSlot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Rows, and the raw scores that a new model must give for them bit for bit, in addition to its manifest's."""

    rows: Sequence[Any]
    raw: Sequence[Sequence[float]]  # [n, n_classes]


class ModelSlot:
    """
    The served model. A reader takes `current` once per request, and uses that model for the whole request.

    A swap replaces one reference, so a reader has the old model or the new one. The old model is freed when its last
    reader drops it; for `rollback` the slot keeps only the bytes of its file.
    """

    def __init__(self, model: Model) -> None:
        self._current = model
        self._previous: tuple[bytes, Manifest | None, int, int | None] | None = None
        self._swapping = ForkLock()

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
            golden: The caller's own rows and scores.
            other_signature: Whether the new model may have other features, another order of them, or other outputs.
                Rows in the old order, also those that wait in a `Batcher`, would then be read wrongly.

        Returns:
            The description of the new model.

        Raises:
            ModelError, OSError: Any check failed; the old model is still served, untouched.

        The new model uses all its iterations, also if the old one was loaded with `num_iteration`; for fewer, load it
        and call `check_signature` and `adopt`. One swap runs at a time; readers never wait. Cost: as `Model.load`, on
        the calling thread.
        """
        with self._swapping.held():
            new = Model.load(path, manifest=manifest, sha256=sha256, threads=self._current.threads)
            if not other_signature:
                self.check_signature(new)
            if golden is not None:
                new.check_golden(golden.rows, golden.raw)
            return self._replace(new)

    def check_signature(self, model: Model) -> None:
        """
        Check that *model* has the features and outputs of the served model, in the same order.

        For callers of `adopt`; `swap` does this unless `other_signature` is given.

        Raises:
            ModelError: *model* has other features, another order of them, or other outputs; the message says which.
        """
        _refuse_other_signature(self._current.info, model.info)

    def adopt(self, model: Model) -> ModelInfo:
        """
        Serve *model*, which the caller has loaded and checked, from now on; its signature is not checked.

        For swaps in two steps: all processes load the model before any of them serves it.

        Raises:
            TypeError: *model* is no `Model`, for example a path; the old model is still served.
        """
        if not isinstance(model, Model):
            raise TypeError(
                f"adopt takes a loaded Model, not {type(model).__name__}; to serve a file, use swap"
            )
        with self._swapping.held():
            return self._replace(model)

    def rollback(self) -> ModelInfo:
        """
        Undo the last swap: load the previous model from memory, verify it, and serve it. A second call redoes the swap.

        Raises:
            ModelError: There was no swap, or the previous model fails a check.
        """
        with self._swapping.held():
            if self._previous is None:
                raise ModelError("nothing to roll back to: this slot has held one model only; use swap")
            data, manifest, threads, iterations = self._previous
            return self._replace(Model(data, manifest=manifest, threads=threads, num_iteration=iterations))

    def _replace(self, new: Model) -> ModelInfo:
        old = self._current
        self._previous = (old.data, old.manifest, old.threads, old.num_iteration)
        self._current = new
        return new.info


def _refuse_other_signature(old: ModelInfo, new: ModelInfo) -> None:
    """Refuse a model whose features or outputs are not those of the old one."""
    for what, before, now in (
        ("features", old.features, new.features),
        ("output kind", old.output, new.output),
        ("number of outputs", old.n_classes, new.n_classes),
        ("classes", old.classes, new.classes),
    ):
        if before and before != now:  # a new model may name classes where the old one did not
            raise ModelError(
                f"{what}: the served model has {_shown(before)}, the new one has {_shown(now)}; if all callers are"
                " ready for that, pass other_signature=True"
            )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
