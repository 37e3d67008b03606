"""`mysql://...`, `postgresql+asyncpg://...` and the like: opens a store with its own engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import ceil, inf
from typing import Any
from urllib.parse import unquote

from idempotency.stores.parse_url import StoreURL, read_options, refuse
from idempotency.stores.sqlalchemy import SQLAlchemyStore, SyncSQLAlchemyStore

import sqlalchemy  # isort: skip - the store says which extra is missing
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import create_async_engine

__all__ = ["open_sqlalchemy"]

# The sync driver for each async driver, and the reverse; other drivers serve both kinds, or only one.
_DRIVERS = {"asyncmy": "pymysql", "asyncpg": "psycopg", "aiosqlite": "pysqlite"}
_DISTRIBUTIONS = {"MySQLdb": "mysqlclient", "pymysql": "PyMySQL", "psycopg2": "psycopg2-binary"}
_ASYNC_DRIVERS = {"pymysql": "asyncmy", "mysqldb": "asyncmy", "psycopg2": "psycopg", "pysqlite": "aiosqlite"}

_OF_MYSQL = ("connect_timeout", "read_timeout", "write_timeout")
_LONGEST = 86_400.0  # s, of a driver's time limit; drivers refuse very long ones


def open_sqlalchemy(parts: StoreURL, sync: bool) -> SQLAlchemyStore | SyncSQLAlchemyStore:
    """See `idempotency.stores.url`."""
    readers: dict[str, Callable[[str], Any]] = {"table": str, "deadline": float, "pool_size": int}
    options = read_options(
        parts._replace(query=tuple(pair for pair in parts.query if pair[0] in readers)), readers
    )
    if len(parts.hosts) > 1:
        refuse(parts, "takes one host")
    dialect, _, driver = parts.scheme.partition("+")
    driver = driver or "pymysql"
    driver = (_DRIVERS if sync else _ASYNC_DRIVERS).get(driver, driver)
    if driver == "aiomysql":  # before it is looked for: who has it not shall not install it
        refuse(
            parts,
            "cannot use aiomysql, which does not bind bytes with a current PyMySQL: use mysql+asyncmy://",
        )
    host, port = parts.hosts[0] if parts.hosts else (None, None)
    database = unquote(parts.path.removeprefix("/")) or None
    if dialect == "sqlite" and database in {None, ":memory:"}:  # each connection would have its own database
        refuse(parts, f"takes the path of a file, such as {parts.scheme}:///records.db")
    url = sqlalchemy.URL.create(
        f"{dialect}+{driver}",
        username=parts.user,
        password=parts.password,
        host=host,
        port=port,
        database=database,
        query={name: value for name, value in parts.query if name not in readers},
    )
    deadline = options.pop("deadline", 5.0)
    if not 0 < deadline < inf:
        refuse(parts, f"takes a positive number of seconds as deadline, not {deadline}")
    settings = {"pool_size": options.pop("pool_size", 8), "max_overflow": 0, "pool_timeout": deadline}
    if sync:
        settings["connect_args"] = _time_limits(driver, deadline, given=url.query)
    try:
        engine: Any = _engine(sqlalchemy.create_engine if sync else create_async_engine, url, settings)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a {parts.scheme}: store needs the driver {error.name}, which is not installed: pip install "
            f"{_DISTRIBUTIONS.get(error.name or '', error.name)}"
        ) from error
    if engine is None:  # raised here: SQLAlchemy's own error quotes the URL
        refuse(
            parts,
            f"names the driver {driver!r}: SQLAlchemy does not know it, or it is async for a sync store or the reverse",
        )
    if sync:
        return SyncSQLAlchemyStore(engine, owns_engine=True, **options)
    return SQLAlchemyStore(engine, owns_engine=True, deadline=deadline, **options)


def _time_limits(driver: str, deadline: float, given: Collection[str]) -> dict[str, Any]:
    """
    A blocking driver's own time limits, for a server that does not answer; a lost connection is tried once more.

    Args:
        given: The options in the URL, which count instead.
    """
    half = min(deadline / 2, _LONGEST)
    limits: dict[str, float] = {}
    if driver == "pymysql":
        limits = dict.fromkeys(_OF_MYSQL, half)
    elif driver == "mysqldb":
        limits = dict.fromkeys(_OF_MYSQL, ceil(half))
    elif driver in {"psycopg", "psycopg2"}:
        limits = {"connect_timeout": ceil(half)}  # libpq has none for a reply
    elif driver == "pysqlite":
        limits = {"timeout": deadline}
    return {name: limit for name, limit in limits.items() if name not in given}


def _engine(create: Callable[..., Any], url: Any, settings: Mapping[str, Any]) -> Any:
    try:
        return create(url, **settings)
    except (ArgumentError, InvalidRequestError):
        return None
