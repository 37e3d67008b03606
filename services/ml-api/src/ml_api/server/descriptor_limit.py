"""Raises the number of files, and so of connections, that this process may open."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["raise_descriptor_limit"]

_OTHER_DESCRIPTORS = 32  # kept free for the store's connections, files, and sockets of other workers


def raise_descriptor_limit(max_connections: int) -> int:
    """
    Raise this process's file descriptor limit for *max_connections*; return how many connections it can have.

    Without free descriptors, a process cannot accept any connection, not even for `/health`. So only half of the
    available descriptors are used: connections may arrive faster than others are closed.
    """
    try:
        import resource
    except ImportError:  # Windows: no such limit
        return max_connections
    opened = len(os.listdir("/dev/fd")) if Path("/dev/fd").is_dir() else 64  # noqa: PTH208 - names are counted
    wanted = opened + _OTHER_DESCRIPTORS + 2 * max_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):
            pass  # some systems have another limit below the hard limit
    if soft == resource.RLIM_INFINITY:
        return max_connections
    return max(1, min(max_connections, (soft - opened - _OTHER_DESCRIPTORS) // 2))
