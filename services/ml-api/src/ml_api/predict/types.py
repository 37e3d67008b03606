"""The types of the values in a request: exact decimals, times and names."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Raw

__all__ = [
    "PATTERN_END",
    "Close",
    "Digits",
    "Instant",
    "Money",
    "Name",
    "Price",
    "SchemaVersion",
    "Symbol",
    "close_text",
    "money_schema",
    "to_instant",
    "to_money",
]

# The largest System.Decimal of .NET, the client's type for money.
_MAX_MONEY = Decimal(79_228_162_514_264_337_593_543_950_335)
_DECIMAL_TEXT = r"^[+-]?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?$"
_INSTANT_TEXT = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])?$"
)
_is_instant = re.compile(_INSTANT_TEXT).fullmatch
_is_decimal = re.compile(_DECIMAL_TEXT).fullmatch
_NUMBER_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": _DECIMAL_TEXT}]}

PATTERN_END = r"(?!\n)"
"""
To be added after the `$` of a pattern that msgspec checks: in Python, `$` also matches before a final line feed. In
JSON Schema it does not, so the OpenAPI document omits this.
"""

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Symbol: TypeAlias = Annotated[str, Meta(min_length=1, max_length=32)]
SchemaVersion: TypeAlias = Annotated[str, Meta(pattern=r"^1(\.[0-9]{1,4})?$" + PATTERN_END)]

# trading.decision checks that candles are sensible; a bound here would cost one more comparison per value.
Price: TypeAlias = float | Annotated[str, Meta(pattern=_DECIMAL_TEXT + PATTERN_END)]

Close: TypeAlias = Annotated[Raw, Meta(extra_json_schema=_NUMBER_SCHEMA)]
"""A close as JSON text, because order sizes are computed with its exact digits; `close_text` checks it."""

Instant: TypeAlias = Annotated[
    str, Meta(extra_json_schema={"pattern": _INSTANT_TEXT, "examples": ["2026-02-20T14:00:00Z"]})
]
"""ISO 8601 with Z, an offset or neither (then UTC); `to_instant` checks it. Digits after microseconds are dropped."""


class Digits(str):
    """The text of a JSON number with a fraction or an exponent."""

    __slots__ = ()


class Money(Decimal):
    """An exact amount, from a JSON number, of which all digits are kept, or from a string. Never from a boolean."""

    __slots__ = ()


def to_money(_: type, sent: Any) -> Money:
    """
    Convert `Digits`, an integer or a string to an amount; a `dec_hook` of msgspec, for its only type `Money`.

    Raises:
        ValueError: *sent* is not a number, not finite, or too large for a .NET decimal.
    """
    # Decimal() also accepts "1_000", " 1" and digits of other scripts, which are refused here.
    if type(sent) in {Digits, int} or (type(sent) is str and _is_decimal(sent)):
        try:
            amount = Money(sent)
        except InvalidOperation:
            raise ValueError("an exponent beyond that of a decimal") from None
        if -_MAX_MONEY <= amount <= _MAX_MONEY:
            return amount
    raise ValueError("not a decimal of a sensible size")


def money_schema(_: type) -> dict[str, Any]:
    """Return the JSON schema of `Money`, which msgspec does not know."""
    return _NUMBER_SCHEMA


_close_string = msgspec.json.Decoder(Annotated[str, Meta(pattern=_DECIMAL_TEXT + PATTERN_END)]).decode


def close_text(close: Raw) -> str:
    """
    Return the digits of a close, for `float` or `Decimal`.

    Raises:
        msgspec.ValidationError: It is neither a number nor a string with one.
    """
    text = str(close, "utf-8")
    return text if text[0] in "-0123456789" else _close_string(close)


# Cached, because the same times occur in both assets, in fingerprint and decision, and in successive requests. Only
# texts that match the pattern are cached, so entries are short.
@lru_cache(maxsize=4096)
def to_instant(text: str) -> datetime:
    """
    Convert an ISO 8601 text to a time with a time zone.

    Raises:
        ValueError: *text* is not an ISO 8601 date and time.
    """
    if not _is_instant(text):
        raise ValueError("not an ISO 8601 date and time")
    moment = datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z, fromisoformat no z
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
