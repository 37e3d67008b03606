"""Encodes types that JSON lacks (dates, bytes, enums, unions, tuples): the parts of a `Plan`."""

from __future__ import annotations

import enum
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any, Final
from uuid import UUID

from idempotency._core.annotations import Plan
from idempotency._core.json import require_exact

__all__ = [
    "LEAVES",
    "SCALARS",
    "exactly",
    "finite",
    "json_value",
    "of_enum",
    "of_literal",
    "of_row",
    "of_union",
]

SCALARS: Final = (str, int, bool)


def _seconds(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _with_fold(value: datetime | time) -> Any:
    """ISO 8601, plus the fold: it marks the second of two equal wall times when clocks are set back (PEP 495)."""
    return [value.isoformat(), value.fold] if value.fold else value.isoformat()


def _read_fold(kind: Any, stored: Any) -> Any:
    text, fold = stored if type(stored) is list else (stored, 0)
    return kind.fromisoformat(text).replace(fold=fold)


# Types that JSON lacks, each with its encoder and decoder.
LEAVES: Final[dict[Any, tuple[Callable[[Any], Any], Callable[[Any], Any]]]] = {
    bytes: (lambda value: b64encode(value).decode(), lambda stored: b64decode(stored, validate=True)),
    bytearray: (
        lambda value: b64encode(value).decode(),
        lambda stored: bytearray(b64decode(stored, validate=True)),
    ),
    datetime: (_with_fold, lambda stored: _read_fold(datetime, stored)),
    date: (date.isoformat, date.fromisoformat),
    time: (_with_fold, lambda stored: _read_fold(time, stored)),
    timedelta: (_seconds, lambda stored: timedelta(*stored)),
    Decimal: (str, Decimal),
    UUID: (str, UUID),
}


def exactly(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {kind.__qualname__} was expected, not a {type(value).__qualname__}")
    return value


def json_value(value: Any) -> Any:
    require_exact(value)
    return value


def finite(value: Any) -> float:
    if not isfinite(exactly(float, value)):
        raise ValueError("NaN and infinities are not JSON (RFC 8259, 6)")
    return float(value)


def of_literal(values: tuple[Any, ...]) -> Plan:
    def encode(value: Any) -> int:
        for index, known in enumerate(values):
            if type(known) is type(value) and known == value:
                return index
        raise TypeError("not one of the literals")

    def decode(stored: Any) -> Any:
        if exactly(int, stored) < 0:
            raise ValueError("not one of the literals")
        return values[stored]

    if all(type(value) in SCALARS for value in values):  # as they are, for a person to read
        return Plan(lambda value: values[encode(value)], lambda stored: values[encode(stored)])
    return Plan(encode, decode)


def of_enum(kind: type[enum.Enum]) -> Plan:
    if issubclass(kind, enum.Flag):  # a union of flags has no name of its own
        return Plan(lambda value: exactly(kind, value).value, lambda stored: kind(exactly(int, stored)))
    return Plan(lambda value: exactly(kind, value).name, lambda stored: kind[stored])


def of_union(members: list[tuple[str, Plan]]) -> Plan:
    """The plan of a union: the first member that takes the value exactly, named in the record."""
    names = [name for name, _ in members]
    # Classes with the same name get their position as well.
    tags = [name if names.count(name) == 1 else f"{name} #{place}" for place, name in enumerate(names)]
    plans = dict(zip(tags, (plan for _, plan in members), strict=True))

    def encode(value: Any) -> Any:
        for tag, plan in plans.items():
            try:
                return {"as": tag, "value": plan.encode(value)}
            except (TypeError, ValueError, AttributeError, KeyError):
                continue
        raise TypeError(f"a {type(value).__qualname__} is no member of the union")

    return Plan(encode, lambda stored: plans[stored["as"]].decode(stored["value"]))


def of_row(kind: Any, plans: list[Plan]) -> Plan:
    """The plan of a tuple with one member for each of *plans*."""

    def through(values: Iterable[Any], way: str) -> list[Any]:
        return [getattr(plan, way)(value) for plan, value in zip(plans, values, strict=True)]

    make = kind if kind is tuple else kind._make
    return Plan(
        lambda value: through(exactly(kind, value), "encode"),
        lambda stored: make(through(exactly(list, stored), "decode")),
    )
