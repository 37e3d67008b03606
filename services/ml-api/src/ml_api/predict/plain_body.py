"""
Rewrites a JSON body in a plain form: each known member once, by its camelCase name.

The typed parser needs this for bodies with snake_case names, unknown members, repeated members (the last one counts),
numbers beyond float64, or a byte order mark, which a parser may ignore (RFC 8259, 8.1). Numbers keep all their digits.
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any, TypeAlias, get_args, get_origin

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
    return _encode(_object_rewriter(kind)(document))


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


_Rewriter: TypeAlias = Callable[[Any], Any]


@cache  # once for each type: 340,000 empty objects fit into a body
def _rewriter(kind: Any) -> _Rewriter | None:
    """Return the function that rewrites a value of the type *kind*; None if such a value stays as it is."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _object_rewriter(kind)
    if get_origin(kind) is list and (item := _rewriter(get_args(kind)[0])) is not None:
        return lambda value: list(map(item, value)) if isinstance(value, list) else value
    if float in get_args(kind):
        return lambda value: _BEYOND_FLOAT if type(value) in {Raw, int} and not _fits(value) else value
    return None


@cache
def _object_rewriter(kind: type[Struct]) -> _Rewriter:
    known = {
        name: (field.encode_name, _rewriter(field.type))
        for field in msgspec.structs.fields(kind)
        for name in (field.name, field.encode_name)
    }

    def rewrite(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        plain: dict[str, Any] = {}
        for sent, member in value.items():
            if sent in known:
                name, rewriter = known[sent]
                if sent == name or name not in value:  # camelCase wins over snake_case
                    plain[name] = rewriter(member) if rewriter is not None else member
        return plain

    return rewrite


def _fits(number: Raw | int) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False
