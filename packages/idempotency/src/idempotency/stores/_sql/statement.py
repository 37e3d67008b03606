"""
One SQL text for every driver: a parameter is written `%(name)s` and converted to the driver's style (PEP 249).

A text must contain no other percent sign, because drivers treat it differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

__all__ = ["Params", "named", "render"]

Params = dict[str, Any] | tuple[Any, ...]
"""The parameters for a driver: by name, or in the order of their places."""

_PLACE = re.compile(r"%\((\w+)\)s")
_BY_NAME = {"pyformat": None, "named": r":\1"}
_BY_PLACE = {"qmark": "?", "format": "%s"}
_BY_NUMBER = {"numeric": ":", "numeric_dollar": "$"}


def render(sql: str, values: Mapping[str, Any], paramstyle: str) -> tuple[str, Params]:
    """
    *sql* and *values* for a driver with *paramstyle*; values that the text does not name are left out.

    Raises:
        ValueError: A parameter style that PEP 249 and SQLAlchemy do not know.

    >>> render("SELECT %(a)s, %(b)s, %(a)s", {"a": 1, "b": 2, "c": 3}, "numeric_dollar")
    ('SELECT $1, $2, $1', (1, 2))
    """
    text, names = _compiled(sql, paramstyle)
    if paramstyle in _BY_NAME:
        return text, {name: values[name] for name in names}
    return text, tuple([values[name] for name in names])


@lru_cache(maxsize=256)
def named(sql: str) -> str:
    """
    *sql* for a driver with the style `named` that ignores values the text does not name, as sqlite3 does.

    >>> named("SELECT %(a)s")
    'SELECT :a'
    """
    return _PLACE.sub(r":\1", sql)


@lru_cache(maxsize=256)
def _compiled(sql: str, paramstyle: str) -> tuple[str, tuple[str, ...]]:
    """The driver's text, and the names of its parameters in the driver's order."""
    named = _PLACE.findall(sql)
    if paramstyle in _BY_NAME:
        replacement = _BY_NAME[paramstyle]
        return sql if replacement is None else _PLACE.sub(replacement, sql), tuple(dict.fromkeys(named))
    if paramstyle in _BY_PLACE:
        return _PLACE.sub(_BY_PLACE[paramstyle], sql), tuple(named)
    if paramstyle in _BY_NUMBER:
        order = tuple(dict.fromkeys(named))
        sign = _BY_NUMBER[paramstyle]
        return _PLACE.sub(lambda place: f"{sign}{order.index(place[1]) + 1}", sql), order
    raise ValueError(f"no such parameter style: {paramstyle!r}")
