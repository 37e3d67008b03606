"""Owner tokens: 128 random bits for each acquire, drawn from the system in batches."""

from __future__ import annotations

import os

from idempotency._core.types import Owner

__all__ = ["new_owner"]

_BATCH, _SIZE = 256, 16
_pool: list[bytes] = []


def new_owner() -> Owner:
    """A token that nobody else has: 16 bytes of the system's randomness; one system call for 256 of them."""
    try:
        return Owner(_pool.pop())
    except IndexError:
        drawn = os.urandom(_BATCH * _SIZE)
        _pool.extend(drawn[start : start + _SIZE] for start in range(_SIZE, len(drawn), _SIZE))
        return Owner(drawn[:_SIZE])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.clear)  # two processes must never draw the same token
