"""
One worker's part in a swap, which replaces a model in all workers or in none.

A swap has two phases. First, every worker loads and checks the new model, beside the old one. If all succeed, one small
file, the pointer, is replaced: this is the swap. Then every worker follows the pointer, which cannot fail, because the
model is loaded already. A worker that missed the message, because it was starting or the coordinator died, reads the
pointer itself, and serves the same model.

Before that, the new model and its manifest are copied to the pointer's directory. So all workers load the same bytes,
and a worker that starts later still finds them. Copies and pointer live as long as the service; after a restart of the
service, the settings decide again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path

from ml_api.serving.background import run_in_background
from ml_api.serving.model_files import ModelDirectory, ModelFileRefused
from predictor import (
    GoldenRowMismatch,
    IntegrityError,
    ManifestError,
    Model,
    ModelError,
    ModelSlot,
    ModelTextError,
    PredictorError,
    manifest_path,
)

__all__ = ["Participant", "Pointer", "SwapRefused"]


class SwapRefused(Exception):
    """
    No worker serves the new model.

    The message says why. It contains nothing of the file, so it may be sent to the caller.

    Args:
        details: More details for the log; they may quote the file.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Pointer:
    """The file that says, for each model swapped since the service started, which copy to serve."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._file = directory, directory / "current.json"

    def read(self) -> dict[str, Path]:
        """Return the copies to serve by model name; empty before the first swap."""
        try:
            names: dict[str, str] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        return {name: self._directory / file for name, file in names.items()}

    def write(self, name: str, copy: Path) -> None:
        """Set the copy to serve under *name*; with this, the swap has happened."""
        names = {known: path.name for known, path in self.read().items()} | {name: copy.name}
        draft = self._file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(names))
        draft.replace(self._file)

    def keep(self, model: Model) -> Path:
        """Copy *model* and its manifest into the shared directory; the file name is a hash of both."""
        assert model.manifest is not None
        described = model.manifest.model_dump_json().encode()
        copy = self._directory / f"{sha256(model.info.sha256.encode() + described).hexdigest()}.txt"
        draft = copy.with_suffix(f".{os.getpid()}")
        draft.write_bytes(model.data)
        draft.replace(copy)
        model.manifest.write(manifest_path(copy))
        return copy


class Participant:
    """
    One worker's part: load the proposed model, and serve what the pointer says.

    Args:
        slots: The slots by model name.
        directory: The directory from which proposed models are read; None refuses every proposal.
        check: Raises SwapRefused if the model may not be put into the slot of that name.
        swapped: Called after a swap with the name, the old version and the new version.
    """

    def __init__(
        self,
        slots: Mapping[str, ModelSlot],
        *,
        directory: ModelDirectory | None,
        check: Callable[[str, Model], None],
        swapped: Callable[[str, str, str], None],
    ) -> None:
        self._slots, self._check, self._swapped = slots, check, swapped
        self._directory = directory
        self._ready: dict[Path, Model] = {}
        self._serving: dict[str, Path] = {}

    def version(self, name: str) -> str:
        """Return the version that this worker serves under *name*."""
        return self._slots[name].current.info.version

    async def examine(
        self, name: str, file: str, digest: str | None, *, other_signature: bool = False
    ) -> Model:
        """
        Load *file* from the model directory, and check that it may be served under *name*.

        Args:
            digest: The SHA-256 that the file must have, 64 hex digits; default the manifest's.
            other_signature: Whether it may have other features, another order of them, or other outputs than the
                served model. Rows of callers that do not know about the change would be read wrongly.
        Raises:
            SwapRefused: It may not be served; the message says why.

        Cost: about 40 ms per megabyte, in a thread.
        """
        return await run_in_background(lambda: self._examine(name, file, digest, other_signature))

    async def prepare(self, name: str, copy: Path) -> None:
        """
        Load *copy* beside the served model.

        Raises:
            SwapRefused: This worker cannot serve it.
        """
        self._ready[copy] = await run_in_background(partial(self._load_copy, name, copy))

    async def follow(self, pointer: Pointer) -> None:
        """Serve the copies that *pointer* names; running requests finish with the model that they began with."""
        for name, copy in pointer.read().items():
            slot = self._slots.get(name)
            if slot is not None and self._serving.get(name) != copy:
                new = self._ready.get(copy)
                if new is None:
                    new = await run_in_background(partial(self._load_copy, name, copy))
                old = slot.current.info.version
                slot.adopt(new)
                self._serving[name] = copy
                self._swapped(name, old, new.info.version)
        self._ready.clear()

    def _examine(self, name: str, file: str, digest: str | None, other_signature: bool) -> Model:
        if self._directory is None:
            raise SwapRefused("no model directory is configured; set ML_SERVICE_ADMIN_MODEL_DIR")
        slot = self._slot(name)
        try:
            data, manifest = self._directory.read(file)
            model = Model.from_bytes(data, manifest=manifest, sha256=digest)
        except ModelFileRefused as error:
            raise SwapRefused(str(error)) from None
        except PredictorError as error:
            raise SwapRefused(_reason(error), str(error)) from None
        self._check_fit(name, model)
        if not other_signature:
            try:
                slot.check_signature(model)
            except ModelError as error:
                raise SwapRefused(
                    "it has other features, another order of them, or other outputs than the served model; "
                    "if all callers are ready for that, send other_signature: true",
                    str(error),
                ) from None
        return model

    def _load_copy(self, name: str, copy: Path) -> Model:
        self._slot(name)
        try:
            model = Model.load(copy)
        except (PredictorError, OSError) as error:
            raise SwapRefused(
                "a worker could not load its copy of the model; try again", str(error)
            ) from None
        self._check_fit(name, model)
        return model

    def _slot(self, name: str) -> ModelSlot:
        try:
            return self._slots[name]
        except KeyError:
            raise SwapRefused(
                f"there is no model of that name; the models are {', '.join(sorted(self._slots))}"
            ) from None

    def _check_fit(self, name: str, model: Model) -> None:
        if model.info.name != name:
            raise SwapRefused(f"its manifest has another name than {name}")
        self._check(name, model)


def _reason(error: PredictorError) -> str:
    """Return the reason for refusing a model, without any text of its file."""
    match error:
        case IntegrityError():
            return "its SHA-256 is not the expected one"
        case GoldenRowMismatch():
            return "it does not give the numbers of its golden rows"
        case ManifestError():
            return "its manifest is malformed or describes another model"
        case ModelTextError():
            return "it is not a LightGBM text model that can be served safely"
        case _:
            return "it cannot be served; the service's log says why"
