"""Reads how long a client prefers to wait for a running duplicate (RFC 7240, 4.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from idempotency._core.policy import Policy

__all__ = ["preferred_wait"]

_WAIT: Final = re.compile(rb"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)


def preferred_wait(lines: Iterable[bytes], policy: Policy) -> float:
    """
    Seconds to wait: the client's preference, at most `policy.prefer_wait`; without a preference, `policy.wait`.

    Args:
        lines: The field lines of `Prefer`.

    >>> preferred_wait([b"respond-async, wait=10"], Policy(wait=1.0, prefer_wait=5.0))
    5.0
    """
    if policy.prefer_wait > 0:
        for line in lines:
            if preferred := _WAIT.search(line):
                return min(float(preferred[1]), policy.prefer_wait)
    return policy.wait
