"""
Reads model files that an administrator names: regular files in one directory, up to a size.

A path may be absolute, or relative to the directory. A symbolic link is followed only if its target is inside the
directory (Kubernetes mounts a ConfigMap so). Opening cannot block, because FIFOs and devices are refused.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from predictor import Manifest, manifest_path

__all__ = ["ModelDirectory", "ModelFileRefused"]

_MAX_MANIFEST_BYTES = 16_777_216


class ModelFileRefused(Exception):
    """A file cannot be read from the directory; the message says why, without any content of a file."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """
    The directory from which models may be loaded while the service runs.

    Attributes:
        max_bytes: The size limit of a model file.
    """

    path: Path
    max_bytes: int

    def read(self, name: str) -> tuple[bytes, Manifest]:
        """
        Read the model file *name* and the manifest beside it.

        Raises:
            ModelFileRefused: One of them is not a regular file in the directory, or is too large.
            ManifestError: The manifest is malformed.
        """
        model = self._bytes(name, "model file", self.max_bytes)
        beside = manifest_path(name)
        manifest = self._bytes(str(beside), "manifest", _MAX_MANIFEST_BYTES)
        return model, Manifest.from_bytes(manifest, name=beside.name)

    def _bytes(self, name: str, what: str, limit: int) -> bytes:
        absent = ModelFileRefused(f"there is no {what} of that name in the model directory")
        try:
            # A ValueError means a NUL, or a character that no file name can have.
            root = os.path.realpath(self.path)
            real = os.path.realpath(os.path.join(root, name))  # noqa: PTH118 - on text, before it is a path
            if os.path.commonpath((root, real)) != root:
                raise absent
            file = open(real, "rb", opener=_open_without_waiting)  # noqa: SIM115 - closed below
        except IsADirectoryError:
            raise ModelFileRefused(f"the {what} is not a regular file") from None
        except (OSError, ValueError):
            raise absent from None
        with file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ModelFileRefused(f"the {what} is not a regular file")
            try:
                # One byte more than allowed, to detect a larger file. If the file grows meanwhile, this reads a part of
                # it, which the checks of model and manifest refuse.
                data = file.read(min(found.st_size, limit) + 1)
            except OSError:
                raise ModelFileRefused(f"the {what} cannot be read") from None
        if len(data) > limit:
            raise ModelFileRefused(f"the {what} is larger than {limit} bytes")
        return data


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
