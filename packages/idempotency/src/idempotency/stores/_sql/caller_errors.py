"""Errors for the application's connections that `complete_in` gets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, TypeVar

from idempotency.stores._sql.steps import Steps

__all__ = [
    "autocommitting",
    "is_a",
    "nested",
    "of_a_driver",
    "other_backend",
    "sync_kinds",
    "translated",
    "wrong_kind",
]

T = TypeVar("T")

_DRIVERS: Final = frozenset(
    (
        "MySQLdb",
        "aiosqlite",
        "asyncmy",
        "asyncpg",
        "django",
        "pg8000",
        "psycopg",
        "psycopg2",
        "psycopg_pool",
        "pymysql",
        "sqlalchemy",
        "sqlite3",
    )
)


def is_a(value: object, module: str, *names: str) -> bool:
    """Whether *value* is an instance of one of the classes *names* in *module*; False if that is not imported."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(
        value, tuple(getattr(loaded, name) for name in names if hasattr(loaded, name))
    )


def of_a_driver(error: BaseException) -> bool:
    """Whether *error* comes from a database driver or a framework around it, not from this library or its caller."""
    return isinstance(error, OSError) or any(
        kind.__module__.partition(".")[0] in _DRIVERS for kind in type(error).__mro__
    )


def wrong_kind(store: object, connection: object, *takes: str, instead: str = "") -> TypeError:
    """
    The TypeError for a *connection* that `complete_in` of *store* does not take; it names those that it takes.

    Args:
        instead: Advice: which store takes the other kind of connections (async or sync).
    """
    *most, last = takes
    kind = type(connection)
    known = f"{', '.join(most)} or {last}" if most else last
    advice = f"; {instead}" if instead else ""
    return TypeError(
        f"complete_in of {type(store).__name__} takes {known}, not "
        f"{kind.__module__}.{kind.__qualname__}{advice}"
    )


def sync_kinds(backend: str) -> tuple[str, ...]:
    """The connections that a sync store with *backend* takes in `complete_in`, for `wrong_kind`."""
    drivers = {"postgresql": ("psycopg.Connection",), "sqlite": ("sqlite3.Connection",)}
    return ("SQLAlchemy's Session or Connection", "Django's connection", *drivers.get(backend, ()))


def autocommitting() -> ValueError:
    """The error for a connection that would commit the record alone."""
    return ValueError(
        "complete_in needs a transaction, but this connection commits every statement: begin a transaction and make "
        "the effect in it first; the record joins it"
    )


def nested() -> ValueError:
    """The error for a savepoint, which may be rolled back while the effect stays."""
    return ValueError(
        "complete_in was called inside a savepoint, which can be rolled back while the outer transaction commits the "
        "effect: call it in the outermost block of the transaction"
    )


def other_backend(name: str, backend: str) -> ValueError:
    return ValueError(
        f"this connection leads to {name}, but this store's records are in {backend}: effect and record must be in "
        "the same database"
    )


def translated(steps: Steps[T], meaning: Callable[[Exception], Exception]) -> Steps[T]:
    """*steps*, with a driver's error in one of their statements replaced by `meaning(error)`."""
    try:
        return (yield from steps)
    except Exception as error:
        if not of_a_driver(error):
            raise
        raise meaning(error) from error
