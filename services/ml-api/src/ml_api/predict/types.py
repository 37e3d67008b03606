"""The values that a request is made of: decimals kept to their last digit, instants, names; each with its own error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

from jiter import LosslessFloat
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

__all__ = ["Moment", "Money", "Name", "Price", "SentNumber", "Symbol", "to_decimal", "to_floats"]

# The largest System.Decimal of .NET, the caller's money type; beyond it arithmetic stops being exact money.
_MAX_MONEY = Decimal(79_228_162_514_264_337_593_543_950_335)
_DECIMAL_TEXT = r"^[+-]?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?$"
_INSTANT_TEXT = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?"
    r"([Zz]|[+-][0-9]{2}:?[0-9]{2})?$"
)
_is_instant = re.compile(_INSTANT_TEXT).fullmatch

SentNumber: TypeAlias = LosslessFloat | int | Decimal
"""A finite number as it was sent, every digit of it: with a fraction or exponent, whole, or in a string."""


def to_decimal(number: SentNumber) -> Decimal:
    """
    The number, exactly.

    Raises:
        ValueError: Its exponent is beyond that of a decimal.
    """
    if not isinstance(number, LosslessFloat):
        return Decimal(number)
    try:
        return number.as_decimal()
    except InvalidOperation:
        raise ValueError("an exponent beyond that of a decimal") from None


def to_floats(numbers: Sequence[SentNumber]) -> list[float]:
    """The nearest float64 of each; infinite where a number is too large for one."""
    try:
        return list(map(float, numbers))
    except OverflowError:  # of an integer, which a decimal of its digits never raises
        return [float(Decimal(number) if isinstance(number, int) else number) for number in numbers]


_AS_SENT = core_schema.union_schema(
    [
        core_schema.is_instance_schema(LosslessFloat),
        core_schema.int_schema(strict=True),
        # Decimal() itself takes "1_000", " 1" and digits of other scripts; money should not.
        core_schema.chain_schema(
            [
                core_schema.str_schema(strict=True, pattern=_DECIMAL_TEXT),
                core_schema.decimal_schema(allow_inf_nan=False),
            ]
        ),
    ],
    mode="left_to_right",
)


class _Number:
    """A finite decimal: a JSON number, kept to its last digit, or the same digits in a string. Never a boolean."""

    def __init__(self, limit: Decimal | None = None) -> None:
        self._limit = limit

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _AS_SENT
        if self._limit is not None:
            exact = core_schema.no_info_after_validator_function(to_decimal, _AS_SENT)
            within = core_schema.decimal_schema(allow_inf_nan=False, ge=-self._limit, le=self._limit)
            schema = core_schema.chain_schema([exact, within])
        return core_schema.custom_error_schema(
            schema,
            custom_error_type="decimal",
            custom_error_message="Input should be a finite decimal number of a sensible size, or one as a string",
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "number"}, {"type": "string", "pattern": _DECIMAL_TEXT}]}


class _Instant:
    """A point in time: ISO 8601 with Z, an offset or neither (then UTC). Digits beyond a microsecond are cut."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            core_schema.no_info_after_validator_function(_instant, core_schema.str_schema(strict=True)),
            custom_error_type="datetime",
            custom_error_message="Input should be an ISO 8601 date and time such as 2026-02-20T14:00:00Z",
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": _INSTANT_TEXT, "examples": ["2026-02-20T14:00:00Z"]}


# Assets share their candle times, and so do a fingerprint and its decision, and successive requests. Only what the
# pattern lets pass is kept, so entries are short.
@lru_cache(maxsize=4096)
def _instant(text: str) -> datetime:
    if not _is_instant(text):
        raise ValueError("not an ISO 8601 date and time")
    moment = datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z, fromisoformat no z
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


Money: TypeAlias = Annotated[Decimal, _Number(_MAX_MONEY)]
# Candles are checked for sense where they are used (trading.decision): a bound here would cost a comparison each.
Price: TypeAlias = Annotated[SentNumber, _Number()]
Moment: TypeAlias = Annotated[datetime, _Instant()]
Symbol: TypeAlias = Annotated[str, Field(min_length=1, max_length=32)]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=128)]
