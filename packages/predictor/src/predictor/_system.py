"""Counts the processors that this process may use, and reads files of untrusted size."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["available_cpus", "read_at_most"]

_PIECE = 1 << 20


def available_cpus(*, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """
    Return how many processors this process may use, at least 1: its affinity mask, limited by its cgroup's CPU quota.

    Reads `cpu.max` (cgroup v2) or `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1) below *cgroup*. Systems other than
    Linux have no cgroups; there it is the number of processors.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(count, math.ceil(quota)) if quota is not None else count)


def _quota(cgroup: Path) -> float | None:
    """Return the CPU quota in processors, such as 1.5, or None if there is no limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text("ascii") for name in files).split()
            if int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # no such file, or the word "max": no limit
            continue
    return None


def read_at_most(path: str | os.PathLike[str], limit: int) -> bytes | None:
    """
    Return the bytes of *path*, or None if there are more than *limit*.

    Reads in pieces, so that a sparse file of terabytes or an endless device takes no more memory than *limit*.

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
