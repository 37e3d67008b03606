"""Translates PostgreSQL's errors, from any driver, to store errors that say what to do."""

from __future__ import annotations

from typing import Final

from idempotency._core.errors import CorruptRecord, StoreError, StoreUnavailable
from idempotency.stores._sql.postgresql_rows import overtaken

__all__ = [
    "ADVICE",
    "GRANTS",
    "advice_on",
    "cannot_create",
    "in_transaction",
    "is_transient",
    "to_store_error",
    "sqlstate_of",
]

GRANTS: Final = (
    "GRANT SELECT, INSERT, UPDATE, DELETE on the table and USAGE on its sequence and schema are enough"
)
_UNPREPARED: Final = (
    "the connection does not have a prepared statement, as happens behind a transaction pooler; give the pool "
    'kwargs={"prepare_threshold": None}, or the URL prepare_threshold=none'
)
ADVICE: Final = {
    "08P01": _UNPREPARED,  # another statement has the same name and other parameters
    "25006": "this server is a standby or read-only; connect to the primary",
    "25P02": "this transaction has failed already; roll back and begin it again",
    "26000": _UNPREPARED,
    "28P01": "the server refused the password",
    "3F000": "the schema of the store's table is missing; create it",
    "42501": f"this role may not use the store's table and sequence: {GRANTS}",
    "42P01": "the store's table is missing; call create_schema() once, or run its SQL",
    "42P05": _UNPREPARED,
    "53100": "the server's disk is full",
    "53300": "the server has no connection left; use a smaller pool, or a pooler",
    "55P03": "another transaction held the record's lock for longer than this role's lock_timeout; try again",
    "57014": "the server cancelled the statement; look at its statement_timeout",
}
"""SQLSTATE -> what to do (PostgreSQL documentation, appendix A)."""

_NO_SUCH_NUMBER: Final = frozenset(("22003", "22008", "22015"))  # a number, time or interval is out of range
_TRANSIENT: Final = frozenset(("40001", "40P01"))
# Classes of SQLSTATE, and of PEP 249, whose errors do not go away when the call is repeated.
_PERMANENT_STATES: Final = ("0A", "22", "23", "2F", "38", "39", "42")
_PERMANENT_KINDS: Final = frozenset(("ProgrammingError", "NotSupportedError", "DataError", "IntegrityError"))


def sqlstate_of(error: BaseException) -> str | None:
    """The server's error code; None if the driver itself failed."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state if isinstance(state, str) else None


def advice_on(error: BaseException) -> str | None:
    """The advice on this kind of failure."""
    return ADVICE.get(sqlstate_of(error) or "")


def to_store_error(error: BaseException) -> StoreError:
    """The typed error for a driver's *error*, without the server's text, which may quote a record."""
    advice = advice_on(error)
    if advice is not None:
        return StoreUnavailable(f"PostgreSQL: {advice}")
    state = sqlstate_of(error)
    if state in _NO_SUCH_NUMBER:
        return CorruptRecord(
            "PostgreSQL cannot compute with a time or a number in the stored record, such as infinity; look at it, and "
            "delete it by hand"
        )
    code = state or type(error).__name__
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if state[:2] in _PERMANENT_STATES if state else kinds & _PERMANENT_KINDS:
        older = (
            "; if the table is of an earlier version, create_schema() adds the column"
            if state == "42703"
            else ""
        )
        return StoreError(
            f"PostgreSQL or its driver refused the statement ({code}), and repeating it will not help; look at the "
            f"error that this one was raised from{older}"
        )
    return StoreUnavailable(
        f"no answer from PostgreSQL ({code}); the call may or may not have taken effect, and may be repeated"
    )


def in_transaction(error: BaseException) -> StoreError:
    """`to_store_error` for an error in a transaction of the caller."""
    return overtaken() if sqlstate_of(error) == "40001" else to_store_error(error)


def cannot_create(error: BaseException) -> StoreError:
    """`to_store_error` for an error of `create_schema`."""
    if sqlstate_of(error) == "42501":
        return StoreUnavailable(
            "PostgreSQL: this role may not create the store's table: run the SQL of schema_sql() as a role that may, "
            f"and for this one {GRANTS}"
        )
    return to_store_error(error)


def is_transient(error: BaseException) -> bool:
    """Whether *error* is a conflict with another transaction: nothing has taken effect, and a retry may succeed."""
    return sqlstate_of(error) in _TRANSIENT
