"""Reads the Content-Length that a server hands over as text, for frameworks that WSGI's rules reach."""

from __future__ import annotations

from typing import Final

from idempotency._core.errors import LengthRequired

__all__ = ["content_length"]

_MOST_DIGITS: Final = 18  # more than any body has; int() of thousands of digits raises


def content_length(value: str | None) -> int | None:
    """
    The number of bytes, or 10**18 where it is more than that; None where the field is missing or empty.

    Raises:
        LengthRequired: It is no number (RFC 9112, 6.3): where the body ends cannot be known.

    >>> content_length("12"), content_length("")
    (12, None)
    """
    text = (value or "").strip(" \t")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise LengthRequired("the Content-Length is not a number: send the number of bytes of the body")
    digits = text.lstrip("0")
    return 10**_MOST_DIGITS if len(digits) > _MOST_DIGITS else int(digits or "0")
