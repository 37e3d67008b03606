"""
A model for another, in all workers or in none: one worker's part in it.

Two phases. Every worker loads and checks the new model beside the old one; only if all could, one small file, the
pointer, is replaced: that is the moment of the swap. Then every worker follows the pointer, which cannot fail where
the model was made ready. Whoever missed that message (a worker that started meanwhile, or whose coordinator died)
reads the pointer itself and arrives at the same model.

The new model's bytes and manifest are copied beside the pointer first, so that all workers load the same and a worker
that is restarted next week still finds them. Both live as long as the service: after a restart the settings rule
again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from anyio import to_thread

from predictor import Model, ModelSlot, PredictorError, manifest_path

__all__ = ["Participant", "Pointer", "SwapRefused"]


class SwapRefused(Exception):
    """The new model is not served, by any worker; the message says why."""


class Pointer:
    """What was chosen since the service started: for each model's name the file of the copy that is served."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._file = directory, directory / "current.json"

    def read(self) -> dict[str, Path]:
        """The chosen copies by model name; empty before the first swap."""
        try:
            names: dict[str, str] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        return {name: self._directory / file for name, file in names.items()}

    def write(self, name: str, copy: Path) -> None:
        """Choose *copy*: the swap has happened."""
        names = {known: path.name for known, path in self.read().items()} | {name: copy.name}
        draft = self._file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(names))
        draft.replace(self._file)

    def keep(self, model: Model) -> Path:
        """Copy *model* and its manifest to where all workers find them; the file is named after both."""
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
    One worker's part: load what is proposed, serve what was chosen.

    Args:
        slots: The slots by model name.
        check: Raises SwapRefused for a model that may not be in the slot of that name.
        swapped: Called with the name, the old and the new version after a swap.
    """

    def __init__(
        self,
        slots: Mapping[str, ModelSlot],
        *,
        check: Callable[[str, Model], None],
        swapped: Callable[[str, str, str], None],
    ) -> None:
        self._slots, self._check, self._swapped = slots, check, swapped
        self._ready: dict[Path, Model] = {}
        self._serving: dict[str, Path] = {}

    def version(self, name: str) -> str:
        """What this worker serves under *name*."""
        return self._slots[name].current.info.version

    async def examine(self, name: str, path: Path, digest: str | None) -> Model:
        """
        Load *path* and see whether it may be served under *name*; about 40 ms a megabyte, in a thread.

        Raises:
            SwapRefused: It may not; the message says why.
        """
        return await to_thread.run_sync(self._load, name, path, digest)

    async def prepare(self, name: str, copy: Path) -> None:
        """
        Have *copy* ready beside the model that is served.

        Raises:
            SwapRefused: It cannot be served here.
        """
        self._ready[copy] = await self.examine(name, copy, None)

    async def follow(self, pointer: Pointer) -> None:
        """Serve what *pointer* says; requests under way finish with the model that they began with."""
        for name, copy in pointer.read().items():
            slot = self._slots.get(name)
            if slot is not None and self._serving.get(name) != copy:
                new = self._ready.get(copy) or await self.examine(name, copy, None)
                old = slot.current.info.version
                slot.adopt(new)
                self._serving[name] = copy
                self._swapped(name, old, new.info.version)
        self._ready.clear()

    def _load(self, name: str, path: Path, digest: str | None) -> Model:
        if name not in self._slots:
            raise SwapRefused(f"there is no model called {name}; there is {', '.join(sorted(self._slots))}")
        try:
            model = Model.load(path, sha256=digest)
        except PredictorError as error:
            raise SwapRefused(str(error)) from error
        except OSError as error:
            raise SwapRefused(f"{path} cannot be read: {error.strerror}") from error
        if model.manifest is None:
            raise SwapRefused("a model without a manifest is not served")
        if model.info.name != name:
            raise SwapRefused(f"its manifest calls this model {model.info.name}, not {name}")
        self._check(name, model)
        return model
