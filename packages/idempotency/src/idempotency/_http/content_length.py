"""Reads the Content-Length that a server passes on as text, for frameworks built on WSGI."""

from __future__ import annotations

from typing import Final

from idempotency._core.errors import LengthRequired

__all__ = ["content_length"]

_MOST_DIGITS: Final = 18  # more than any body has; int() of thousands of digits raises


def content_length(value: str | None) -> int | None:
    """
    The number of bytes, at most 10**18; None if the field is missing or empty.

    Raises:
        LengthRequired: The value is not a number (RFC 9112, 6.3), so the end of the body is unknown.

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
