"""Checks that Python values survive a JSON round trip unchanged, and encodes equal values as equal bytes."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

__all__ = ["canonical", "require_exact"]

_SCALARS = frozenset({str, int, bool, type(None)})
_MAX_DEPTH = 100  # a deeper value might be written here and fail to be read where less stack is left

_dumps = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":")).encode


def require_exact(value: Any, *, tuples: bool = False) -> None:
    """
    Raise unless *value* consists of exactly the types that JSON decodes to: no subclass, no NaN, only `str` as keys.

    Args:
        tuples: Accept tuples, although they are decoded as lists.
    Raises:
        TypeError: A value of another type; the message names the type and never the value.
        ValueError: NaN, an infinity, or nested deeper than 100.

    >>> require_exact({"paid": True, "cents": [100, 2**64]})
    >>> require_exact((1, 2))
    Traceback (most recent call last):
        ...
    TypeError: a tuple does not survive JSON unchanged
    """
    # Pairs of value and depth; the depth limit also ends a cycle.
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        kind = type(item)
        if kind in _SCALARS:
            continue
        if depth >= _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        if kind is float:
            if not isfinite(item):
                raise ValueError("NaN and infinities are not JSON (RFC 8259, 6)")
        elif kind is dict:
            for name, member in item.items():
                if type(name) is not str:
                    raise TypeError(
                        f"a dict with a key of type {type(name).__qualname__} does not survive JSON"
                    )
                stack.append((member, depth + 1))
        elif kind is list or (tuples and kind is tuple):
            stack += [(member, depth + 1) for member in item]
        else:
            raise TypeError(f"a {kind.__qualname__} does not survive JSON unchanged")


def canonical(value: Any) -> bytes:
    """
    *value* as canonical JSON: members sorted, characters escaped in one way; a tuple counts as a list.

    Numbers keep their type: `1`, `1.0` and `True` differ.

    Raises:
        TypeError, ValueError: See `require_exact`.
    """
    require_exact(value, tuples=True)
    return _dumps(value).encode()
