"""Generates owner tokens: 128 random bits for each acquire."""

from __future__ import annotations

import os

from idempotency._core.types import Owner

__all__ = ["new_owner"]


def new_owner() -> Owner:
    """A token that nobody else has: 16 bytes of the operating system's randomness, also right after a fork."""
    return Owner(os.urandom(16))
