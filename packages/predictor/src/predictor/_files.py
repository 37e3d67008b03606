"""Reading a file without trusting its size."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["read_at_most"]

_PIECE = 1 << 20


def read_at_most(path: str | os.PathLike[str], limit: int) -> bytes | None:
    """
    Return the bytes of *path*, or None where there are more than *limit* of them.

    Piece by piece, so that a sparse file of terabytes or an endless device costs no more memory than *limit*.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            return None
        pieces, left = [], limit + 1
        while left and (piece := file.read(min(_PIECE, left))):
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces) if left else None
