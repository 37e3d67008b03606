"""
Rewrites a JSON body in a plain form: each known member once, by its camelCase name.

The typed parser needs this for bodies with snake_case names, unknown members, repeated members (the last one counts),
numbers beyond float64, or a byte order mark, which a parser may ignore (RFC 8259, 8.1). Numbers keep all their digits.
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF8
from functools import cache
from itertools import accumulate
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

from ml_api.http.json_fingerprint import as_written

__all__ = ["MAX_DEPTH", "NotJson", "depth", "plain_body"]

MAX_DEPTH = 201
"""Levels of objects and arrays that a body may have."""

# As a string, which a price may be; as float64 it is infinite, like the number itself.
_BEYOND_FLOAT = "9e999"


class NotJson(ValueError):
    """The body is not JSON; the message says why and where, without values."""


def plain_body(body: bytes, kind: type[Struct]) -> bytes:
    """
    Return *body* in the plain form; *kind* has the known members, their names, and which must fit into a float64.

    Raises:
        NotJson: The body is not JSON, or not UTF-8.
    """
    try:
        document = _decode(body.removeprefix(BOM_UTF8))
    except UnicodeDecodeError:
        raise NotJson("it is not UTF-8") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise NotJson(str(error)) from None
    return _encode(_plain(document, kind))


def depth(body: bytes) -> int:
    """Return the levels of objects and arrays in *body*, or at least as many if it is not JSON."""
    brackets = _STRING.sub(b"", body).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(step - 1 for step in brackets), default=0)


# How much each bracket changes the depth, plus one, because bytes cannot be negative.
_STEPS = bytes.maketrans(b"[{]}", b"\2\2\0\0")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


_decode = msgspec.json.Decoder(float_hook=as_written).decode
_encode = msgspec.json.Encoder().encode


@cache
def _known_members(kind: type[Struct]) -> dict[str, tuple[str, Any]]:
    """Return the camelCase name and the type of each member, by both of its names."""
    return {
        name: (field.encode_name, field.type)
        for field in msgspec.structs.fields(kind)
        for name in (field.name, field.encode_name)
    }


def _plain(value: Any, kind: Any) -> Any:
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Struct):
        known = _known_members(kind)
        plain: dict[str, Any] = {}
        for sent, member in value.items():  # not for each known member: 340,000 empty objects fit into a body
            if sent in known:
                name, type_ = known[sent]
                if sent == name or name not in value:
                    plain[name] = _plain(member, type_)
        return plain
    if isinstance(value, list) and get_origin(kind) is list:
        return [_plain(item, get_args(kind)[0]) for item in value]
    if type(value) in {Raw, int} and float in get_args(kind) and not _fits(value):
        return _BEYOND_FLOAT
    return value


def _fits(number: Raw | int) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False
