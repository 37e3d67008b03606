"""
Encodes one argument of a decorated function as text, so that different calls get different fingerprints.

JSON values are written as JSON. Types that JSON lacks are written with their type: dates, decimals, UUIDs, enums, sets,
dataclasses, attrs classes, msgspec structs, pydantic models. Two values have the same text only if no function could
tell them apart; other types are refused.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from math import isfinite
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final
from uuid import UUID

from idempotency._core.json import canonical

__all__ = ["encode_argument"]

_MAX_DEPTH: Final = 100  # a cycle ends here
_MISSING: Final = object()
_EMPTY_FACTORIES: Final[tuple[Any, ...]] = (list, dict, set, frozenset, tuple)


def encode_argument(value: Any) -> bytes:
    """
    The text of *value*; different values have different texts.

    A tuple counts as a list and a frozenset as a set, because JSON, which queues carry, has only one of each. The
    number 1, the text "1", `True`, `1.0` and `Decimal("1")` are five values. For a dataclass, a named tuple, an attrs
    class, a struct or a pydantic model, the class counts, by module and name, and each field that differs from its
    default.

    Raises:
        TypeError: A value of another type, or of a subclass of a known type; the message names only the type.
        ValueError: NaN, an infinity, or nested deeper than 100.

    >>> from decimal import Decimal
    >>> len({encode_argument(value) for value in (1, "1", True, 1.0, Decimal("1"), Decimal("1.0"))})
    6
    >>> encode_argument({"b": 1, "a": (2,)})
    b'{"a":[2],"b":1}'
    """
    try:
        return canonical(value)
    except TypeError:
        return b"!" + _encode(value, 0)  # no JSON text begins with this


# Every text below shows where it ends: it begins with a letter for the type, and a length or a count.


def _text(kind: bytes, text: bytes) -> bytes:
    return b"%b%d:%b" % (kind, len(text), text)


def _sequence(kind: bytes, texts: Iterable[bytes]) -> bytes:
    parts = list(texts)
    return b"%b%d:%b" % (kind, len(parts), b"".join(parts))


def _encode(value: Any, depth: int) -> bytes:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    kind = type(value)
    scalar = _SCALARS.get(kind)
    if scalar is not None:
        return scalar(value)
    if kind is list or kind is tuple:
        return _sequence(b"l", (_encode(item, depth + 1) for item in value))
    if kind is set or kind is frozenset:
        return _sequence(b"e", sorted(_encode(item, depth + 1) for item in value))
    if kind is dict:
        members = ((_encode(name, depth + 1), _encode(member, depth + 1)) for name, member in value.items())
        return _sequence(b"m", (part for pair in sorted(members) for part in pair))
    if isinstance(value, UUID):  # database drivers have their own subclasses
        return _text(b"u", value.bytes)
    if isinstance(value, Enum):
        which = value.value if isinstance(value, Flag) else value.name
        return _sequence(b"c", (_class(kind), _encode(which, depth + 1)))
    if "__dataclass_fields__" in kind.__dict__:  # not inherited: a subclass may have more than fields
        return _sequence(b"o", (_class(kind), *_members(value, _dataclass_defaults(value), depth)))
    if isinstance(value, tuple) and "_fields" in kind.__dict__:
        return _sequence(b"o", (_class(kind), *_members(value, _named_tuple_defaults(kind), depth)))
    if "__attrs_attrs__" in kind.__dict__:
        return _sequence(b"o", (_class(kind), *_members(value, _attrs_defaults(kind), depth)))
    return _encode_of_another_package(value, depth)


def _encode_of_another_package(value: Any, depth: int) -> bytes:
    # Looked up, not imported: the module of an existing value is already imported. (Importing zoneinfo is slow.)
    kind = type(value)
    pydantic, core, msgspec, zoneinfo = map(
        sys.modules.get, ("pydantic", "pydantic_core", "msgspec", "zoneinfo")
    )
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return _encode_model(value, depth)
    if core is not None and isinstance(value, _url_kinds(core)):
        return _sequence(b"o", (_class(kind), _text(b"s", str(value).encode())))
    if msgspec is not None and isinstance(value, msgspec.Struct):
        return _sequence(b"o", (_class(kind), *_members(value, _struct_defaults(kind, msgspec), depth)))
    if msgspec is not None and value is msgspec.UNSET:
        return b"x"
    if zoneinfo is not None and kind is zoneinfo.ZoneInfo:
        return _zone(value)
    raise TypeError(f"a {kind.__qualname__} has no canonical form")


def _url_kinds(core: Any) -> tuple[type[Any], ...]:
    """The classes of URLs; pydantic's own, from 2.10 on, wrap those of pydantic_core and have no public base."""
    networks = sys.modules.get("pydantic.networks")
    wrapping = (getattr(networks, name, None) for name in ("_BaseUrl", "_BaseMultiHostUrl"))
    return (core.Url, core.MultiHostUrl, *(kind for kind in wrapping if kind is not None))


def _class(kind: type[Any]) -> bytes:
    return _text(b"k", f"{kind.__module__}.{kind.__qualname__}".encode())


def _members(value: Any, defaults: dict[str, Any], depth: int) -> Iterator[bytes]:
    # A field at its default is left out, so a field that a later release adds does not change earlier fingerprints.
    for name, default in sorted(defaults.items()):
        member = getattr(value, name)
        if member is default:
            continue
        written = _encode(member, depth + 1)
        if default is _MISSING or written != _encode_default(default, depth + 1):
            yield _sequence(b"f", (_text(b"s", name.encode()), written))


def _encode_default(default: Any, depth: int) -> bytes | None:
    try:
        return _encode(default, depth)
    except (TypeError, ValueError):
        return None


def _dataclass_defaults(value: Any) -> dict[str, Any]:
    defaults = {}
    for field in dataclasses.fields(value):
        given = field.default is not dataclasses.MISSING
        defaults[field.name] = field.default if given else _made_by(field.default_factory)
    return defaults


def _named_tuple_defaults(kind: Any) -> dict[str, Any]:
    return {name: kind._field_defaults.get(name, _MISSING) for name in kind._fields}


def _attrs_defaults(kind: Any) -> dict[str, Any]:
    attr: Any = sys.modules["attr"]
    defaults = {}
    for attribute in kind.__attrs_attrs__:
        default = attribute.default
        if isinstance(default, attr.Factory):
            default = _MISSING if default.takes_self else _made_by(default.factory)
        defaults[attribute.name] = _MISSING if default is attr.NOTHING else default
    return defaults


def _struct_defaults(kind: Any, msgspec: Any) -> dict[str, Any]:
    given = kind.__struct_defaults__  # the defaults of the last fields
    defaults: dict[str, Any] = dict.fromkeys(kind.__struct_fields__, _MISSING)
    for name, default in zip(reversed(kind.__struct_fields__), reversed(given), strict=False):
        if type(default).__name__ == "Factory":  # msgspec's own, which has no public name
            defaults[name] = _made_by(default.factory)
        elif default is not msgspec.NODEFAULT:
            defaults[name] = default
    return defaults


def _made_by(factory: Any) -> Any:
    """The default that *factory* makes: only an empty collection counts, since an identifier differs each time."""
    return factory() if factory in _EMPTY_FACTORIES else _MISSING


def _encode_model(model: Any, depth: int) -> bytes:
    """A model's class, its fields, which of them were given (`exclude_unset` shows it), and its extra members."""
    defaults = {}
    for name, field in type(model).model_fields.items():
        plain = field.default_factory is None and not field.is_required()
        defaults[name] = field.default if plain else _made_by(field.default_factory)
    return _sequence(
        b"p",
        (
            _class(type(model)),
            _sequence(b"l", (_encode(name, depth + 1) for name in sorted(model.model_fields_set))),
            _encode(model.model_extra, depth + 1),
            *_members(model, defaults, depth),
        ),
    )


def _float(value: float) -> bytes:
    if not isfinite(value):
        raise ValueError("NaN and infinities do not say which call is meant")
    return _text(b"r", value.hex().encode())


def _decimal(value: Decimal) -> bytes:
    if not value.is_finite():
        raise ValueError("NaN and infinities do not say which call is meant")
    return _text(b"d", str(value).encode())


def _moment(kind: bytes) -> Callable[[Any], bytes]:
    """A datetime or a time by its fields, offset, fold and zone name; one moment in two zones is two values."""

    def encode(value: Any) -> bytes:
        zone = getattr(value.tzinfo, "key", None)
        return _text(kind, f"{value.isoformat()} {value.fold} {zone or ''}".encode())

    return encode


def _zone(value: Any) -> bytes:
    if value.key is None:
        raise ValueError("a ZoneInfo without a key does not say which zone is meant")
    return _text(b"Z", value.key.encode())


def _offset(value: timezone) -> bytes:
    delta = value.utcoffset(None)
    return _text(b"F", b"%d,%d,%d,%b" % (delta.days, delta.seconds, delta.microseconds, str(value).encode()))


def _as_text(kind: bytes) -> Callable[[Any], bytes]:
    return lambda value: _text(kind, str(value).encode("utf-8", "surrogatepass"))


_SCALARS: Final[dict[type[Any], Callable[[Any], bytes]]] = {
    type(None): lambda _: b"z",
    bool: lambda value: b"t" if value else b"n",
    int: lambda value: _text(b"i", b"%x" % value),  # of any length, unlike decimal digits
    float: _float,
    str: lambda value: _text(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda value: _text(b"b", value),
    bytearray: lambda value: _text(b"y", bytes(value)),
    Decimal: _decimal,
    Fraction: _as_text(b"q"),
    date: lambda value: _text(b"D", value.isoformat().encode()),
    datetime: _moment(b"T"),
    time: _moment(b"C"),
    timezone: _offset,
    timedelta: lambda value: _text(b"L", b"%d,%d,%d" % (value.days, value.seconds, value.microseconds)),
    # A path by its flavour; pure and concrete paths are equal.
    PurePosixPath: _as_text(b"P"),
    PosixPath: _as_text(b"P"),
    PureWindowsPath: _as_text(b"W"),
    WindowsPath: _as_text(b"W"),
    IPv4Address: _as_text(b"A"),
    IPv6Address: _as_text(b"B"),
    IPv4Network: _as_text(b"N"),
    IPv6Network: _as_text(b"M"),
}
