"""The values that a request is made of: decimals kept to their last digit, instants, names; each with its own error."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

__all__ = ["Moment", "Money", "Name", "Price", "Symbol", "parse_instant"]

# The largest System.Decimal of .NET, the caller's money type; beyond it arithmetic stops being exact money.
_MAX_MONEY = Decimal(79_228_162_514_264_337_593_543_950_335)
_DECIMAL_TEXT = r"^[+-]?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?$"
_INSTANT_TEXT = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?"
    r"([Zz]|[+-][0-9]{2}:?[0-9]{2})?$"
)


class _Number:
    """A finite decimal: a JSON number, kept to its last digit, or the same digits in a string. Never a boolean."""

    def __init__(self, limit: Decimal | None = None) -> None:
        self._limit = limit

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        low = None if self._limit is None else -self._limit
        exact = core_schema.decimal_schema(strict=True, allow_inf_nan=False, ge=low, le=self._limit)
        convert = core_schema.decimal_schema(allow_inf_nan=False, ge=low, le=self._limit)
        return core_schema.custom_error_schema(
            core_schema.union_schema(
                [
                    exact,  # a number with a fraction or exponent, as the parser gives it
                    core_schema.chain_schema([core_schema.int_schema(strict=True), convert]),
                    # Decimal() itself takes "1_000", " 1" and digits of other scripts; money should not.
                    core_schema.chain_schema(
                        [core_schema.str_schema(strict=True, pattern=_DECIMAL_TEXT), convert]
                    ),
                ],
                mode="left_to_right",
            ),
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
            core_schema.no_info_after_validator_function(
                _instant, core_schema.str_schema(strict=True, pattern=_INSTANT_TEXT)
            ),
            custom_error_type="datetime",
            custom_error_message="Input should be an ISO 8601 date and time such as 2026-02-20T14:00:00Z",
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": _INSTANT_TEXT, "examples": ["2026-02-20T14:00:00Z"]}


_is_instant = re.compile(_INSTANT_TEXT).fullmatch


def parse_instant(text: str) -> datetime:
    """A candle's time; ValueError where the contract would refuse *text*."""
    if not _is_instant(text):
        raise ValueError("not an instant of the contract")
    return _instant(text)


# Assets share their candle times, the short reading and the full one too, and so do successive requests.
@lru_cache(maxsize=4096)
def _instant(text: str) -> datetime:
    moment = datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z, fromisoformat no z
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


Money: TypeAlias = Annotated[Decimal, _Number(_MAX_MONEY)]
# Candles are checked for sense where they are used (trading.decision): a bound here would cost a comparison each.
Price: TypeAlias = Annotated[Decimal, _Number()]
Moment: TypeAlias = Annotated[datetime, _Instant()]
Symbol: TypeAlias = Annotated[str, Field(min_length=1, max_length=32)]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=128)]
