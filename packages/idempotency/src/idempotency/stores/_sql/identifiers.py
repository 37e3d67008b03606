"""
Quotes the names of tables in SQL, so that a table may be called by a reserved word, such as `order` or `user`.

Quoting keeps the case of a name, which an unquoted one loses in PostgreSQL: the names given here are in lower case
already, or belong to a database that compares them without regard to case (SQLite).
"""

from __future__ import annotations

__all__ = ["quoted"]


def quoted(name: str, mark: str = '"') -> str:
    """
    *name*, or schema.name, in quotes; it must hold no *mark* and no other dot.

    >>> quoted("app.order"), quoted("order", "`")
    ('"app"."order"', '`order`')
    """
    return ".".join(f"{mark}{part}{mark}" for part in name.split("."))
