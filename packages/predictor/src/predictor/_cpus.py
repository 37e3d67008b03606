"""How many processors this process may really use: OpenMP and `os.cpu_count` see the whole host."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["available_cpus"]


def available_cpus(*, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """
    Return the processors this process may use, at least 1: its affinity mask, limited by its cgroup's CPU quota.

    Reads `cpu.max` (cgroup v2) or `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1) below *cgroup*; elsewhere than on
    Linux only the processor count is known.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(count, math.ceil(quota)) if quota is not None else count)


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time per period, or None where there is no limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text("ascii") for name in files).split()
            if int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # absent, or the word "max": no limit here
            continue
    return None
