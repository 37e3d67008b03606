"""
Selects the implementation: `IDEMPOTENCY_IMPL=plain` in the environment switches the speed-ups off.

There are two: `idempotency/__init__.py` has the core decode by msgspec, and `poll_once` polls before it arms a timeout.
Each has a plain version beside it that gives the same results. `scripts/matrix` also runs the whole test suite without
speed-ups; a bug that disappears with `plain` is in a speed-up. The variable is read once, on import.
"""

from __future__ import annotations

import os

__all__ = ["PLAIN"]

_chosen = os.environ.get("IDEMPOTENCY_IMPL", "")
if _chosen not in {"", "fast", "plain"}:
    raise ImportError(f"IDEMPOTENCY_IMPL is {_chosen!r}; set it to fast (the default) or plain")

PLAIN = _chosen == "plain"
"""Whether the speed-ups are off."""
