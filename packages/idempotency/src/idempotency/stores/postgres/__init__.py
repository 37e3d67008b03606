"""
Records in PostgreSQL, beside the data that the operation changes, so that an effect can happen effectively once.

`complete_in` writes the outcome in the same transaction as the effect, so both are committed or neither. Each call is
one statement and one round trip, keeps no session state, and works behind a transaction pooler such as PgBouncer
(before version 1.21, give the pool `kwargs={"prepare_threshold": None}`: see `docs/failure-modes.md`).
"""

from __future__ import annotations

from idempotency._runtime.extras import missing

try:
    import psycopg  # noqa: F401
    import psycopg_pool  # noqa: F401
except ModuleNotFoundError as _error:
    raise missing("postgres", "PostgresStore", _error) from _error

from idempotency.stores._sql.postgresql_statements import Statements
from idempotency.stores.postgres.async_store import PostgresStore
from idempotency.stores.postgres.sync_store import SyncPostgresStore

__all__ = ["PostgresStore", "SyncPostgresStore", "schema_sql"]


def schema_sql(table: str = "idempotency_record") -> str:
    """The SQL that `create_schema` runs, for your own migrations; it changes nothing if the table exists."""
    return Statements.for_table(table).schema
