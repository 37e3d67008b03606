"""Generates owner tokens: 128 random bits for each acquire."""

from __future__ import annotations

import os

from idempotency._core.types import Owner

__all__ = ["new_owner"]


def new_owner() -> Owner:
    """16 random bytes from the operating system: unique, even right after a fork."""
    return Owner(os.urandom(16))
