"""Translates the errors of psycopg and its pool that no other PostgreSQL driver raises."""

from __future__ import annotations

import psycopg
import psycopg_pool

from idempotency._core.errors import StoreError, StoreUnavailable
from idempotency.stores._sql import postgresql_errors
from idempotency.stores._sql.postgresql_errors import cannot_create, is_transient

__all__ = ["cannot_create", "is_gone", "is_transient", "not_begun", "to_store_error", "too_late"]

_POOL: tuple[tuple[type[Exception], str], ...] = (
    (
        psycopg_pool.PoolTimeout,
        "the pool had no connection in time; make it larger, or find out what holds them",
    ),
    (psycopg_pool.TooManyRequests, "too many callers wait for the pool; make it larger"),
    (psycopg_pool.PoolClosed, "the pool is not open; open it before the store is used"),
)


def to_store_error(error: psycopg.Error) -> StoreError:
    """The typed error for the driver's *error*, without the server's text, which may quote a record."""
    for kind, advice in _POOL:
        if isinstance(error, kind):
            return StoreUnavailable(f"PostgreSQL: {advice}")
    return postgresql_errors.to_store_error(error)


def is_gone(error: psycopg.Error) -> bool:
    """Whether the connection is lost, maybe long before this call; another connection may work."""
    if isinstance(error, tuple(kind for kind, _ in _POOL)) or postgresql_errors.advice_on(error) is not None:
        return False
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))


def too_late(deadline: float) -> StoreUnavailable:
    """The error for no answer within *deadline* seconds."""
    return StoreUnavailable(
        f"no answer from PostgreSQL within {deadline:g} s; the call may or may not have taken effect, "
        "and may be repeated"
    )


def not_begun() -> StoreUnavailable:
    """The error for a call for which there is no thread; nothing was sent."""
    return StoreUnavailable("PostgreSQL: the store is closed, or no thread can be started for the call")
