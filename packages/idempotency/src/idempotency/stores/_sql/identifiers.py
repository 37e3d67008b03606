"""
Quotes table names in SQL, so that a table may have a reserved word as its name, such as `order` or `user`.

PostgreSQL lowers unquoted names, but not quoted ones. So names quoted here must be in lower case, except in SQLite,
which ignores case.
"""

from __future__ import annotations

__all__ = ["quoted"]


def quoted(name: str, mark: str = '"') -> str:
    """
    *name*, or schema.name, in quotes; it must contain no *mark* and no other dot.

    >>> quoted("app.order"), quoted("order", "`")
    ('"app"."order"', '`order`')
    """
    return ".".join(f"{mark}{part}{mark}" for part in name.split("."))
