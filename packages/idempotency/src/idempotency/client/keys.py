"""Generates random keys, and writes a key as the value of a header field."""

from __future__ import annotations

import re
from typing import Final
from uuid import uuid4

__all__ = ["KEY_HEADER", "bare_key", "quote_key", "uuid4_key"]

KEY_HEADER: Final = "Idempotency-Key"
_TEXT = re.compile(r"[ -~]+")
_BARE = re.compile(r"[!-~]([ -~]*[!-~])?")  # a header field's value neither begins nor ends with a space


def uuid4_key() -> str:
    """A random key: a UUID of version 4, with 122 random bits (RFC 9562, 5.4)."""
    return str(uuid4())


def quote_key(key: str) -> str:
    r"""
    A key as a header value in quotes: a String (RFC 9651, 4.1.6), as draft -07 requires.

    Raises:
        ValueError: Empty, or not printable ASCII.

    >>> quote_key("order-1"), quote_key('say "hi"')
    ('"order-1"', '"say \\"hi\\""')
    """
    if not _TEXT.fullmatch(key):
        raise ValueError("an idempotency key is one or more printable ASCII characters")
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def bare_key(key: str) -> str:
    """
    A key as a header value without quotes.

    Raises:
        ValueError: Empty, not printable ASCII, or with a space at either end.
    """
    if not _BARE.fullmatch(key):
        raise ValueError(
            "a key without quotes is one or more printable ASCII characters, without spaces around them"
        )
    return key
