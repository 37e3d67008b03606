"""
Reading model files that an administrator names: from one directory, regular files only, up to a size.

A path may be absolute or relative to the directory. Symbolic links are followed only to where they stay inside it
(Kubernetes mounts a ConfigMap that way). Nothing that is opened can block: not a FIFO, not a device.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from predictor import Manifest, manifest_path

__all__ = ["ModelDirectory", "ModelFileRefused"]

_MAX_MANIFEST_BYTES = 16_777_216
_PIECE = 1 << 20


class ModelFileRefused(Exception):
    """A file cannot be read from the directory; the message says why, and nothing of any file."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """
    The directory that models are taken from while the service runs.

    Attributes:
        max_bytes: Largest model file.
    """

    path: Path
    max_bytes: int

    def read(self, name: str) -> tuple[bytes, Manifest]:
        """
        Read the model file *name* and the manifest beside it.

        Raises:
            ModelFileRefused: One of them is not a regular file in the directory, or too large.
            ManifestError: The manifest is malformed.
        """
        model = self._bytes(name, "model file", self.max_bytes)
        manifest = self._bytes(str(manifest_path(name)), "manifest", _MAX_MANIFEST_BYTES)
        with tempfile.TemporaryDirectory(prefix="ml-api-manifest-") as private:
            copy = Path(private) / "manifest.json"
            copy.write_bytes(manifest)
            return model, Manifest.read(copy)

    def _bytes(self, name: str, what: str, limit: int) -> bytes:
        absent = ModelFileRefused(f"there is no {what} of that name in the model directory")
        try:
            # ValueError: a NUL, or a character that no file name can have.
            root = os.path.realpath(self.path)
            real = os.path.realpath(os.path.join(root, name))  # noqa: PTH118 - on text, before it is a path
            if os.path.commonpath((root, real)) != root:
                raise absent
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (OSError, ValueError):
            raise absent from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ModelFileRefused(f"the {what} is not a regular file")
            if found.st_size > limit:
                raise ModelFileRefused(f"the {what} is larger than {limit} bytes")
            return _read_at_most(descriptor, limit, what)
        finally:
            os.close(descriptor)


def _read_at_most(descriptor: int, limit: int, what: str) -> bytes:
    """All of the file; it may have grown since its size was asked for."""
    pieces, left = [], limit + 1
    try:
        while left and (piece := os.read(descriptor, min(_PIECE, left))):
            pieces.append(piece)
            left -= len(piece)
    except OSError:
        raise ModelFileRefused(f"the {what} cannot be read") from None
    if not left:
        raise ModelFileRefused(f"the {what} is larger than {limit} bytes")
    return b"".join(pieces)
