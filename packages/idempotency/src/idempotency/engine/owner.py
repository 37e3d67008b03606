"""Generates owner tokens: 128 random bits for each acquire."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import urandom
from typing import Final, cast

from idempotency._core.types import Owner

__all__ = ["new_owner"]

new_owner: Final = cast("Callable[[], Owner]", partial(urandom, 16))
"""Returns 16 random bytes from the operating system: unique, even right after a fork."""
