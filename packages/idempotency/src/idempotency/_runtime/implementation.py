"""
Selects the implementation: `IDEMPOTENCY_IMPL=plain` in the environment switches the speed-ups off.

Each of them has a plain version beside it that means the same. `scripts/matrix` runs the whole test suite without them,
and a bug that disappears with `plain` is in a speed-up. It is read once, when the package is imported.
"""

from __future__ import annotations

import os

__all__ = ["PLAIN"]

_chosen = os.environ.get("IDEMPOTENCY_IMPL", "")
if _chosen not in {"", "fast", "plain"}:
    raise ImportError(f"IDEMPOTENCY_IMPL is {_chosen!r}; set it to fast (the default) or plain")

PLAIN = _chosen == "plain"
"""Whether only plain versions run."""
