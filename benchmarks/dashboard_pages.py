"""
The time of a dashboard page over a million records, as a ratio to the same page over a thousand.

    uv run benchmarks/dashboard_pages.py sqlite|redis|postgresql [--records N] [--count]

Starts Redis or PostgreSQL from the wheels that the tests use. `--count` also counts the totals of the large store, so
it reads all records.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from harness.results import Result, add_options, finish
from starlette.testclient import TestClient

from idempotency import Acquired, Fingerprint, Owner, Response, storage_key
from idempotency._core.outcome import encode_response
from idempotency.dashboard import dashboard
from idempotency.stores.url import open_store, open_sync_store

sys.path.insert(0, str(Path(__file__).parents[1] / "packages/idempotency/tests/support"))
from postgres_server import start_postgres
from redis_servers import find_binary, start_server

ANSWER = encode_response(Response(201, [(b"content-type", b"application/json")], b'{"charge": 1}' * 20))
PAGES = {
    "first page": "/",
    "a tenant that is not there": "/?tenant=zoe",
    "one record": "/record?key=alice:first",
    "rates": "/rates",
}
ROUNDS = 15
KEEP = 86_400.0  # s
COLUMNS = "version, fingerprint, owner, attempt, fence, boot, lease_until, retention, expires_at, completed_at, outcome"

Fill = Callable[[int], None]
"""Makes a number of copies of the record `alice:first`."""


@contextmanager
def sqlite_store(folder: Path) -> Iterator[tuple[str, Fill]]:
    path = folder / "records.db"

    def fill(copies: int) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
                f"INSERT INTO idempotency_record (key, {COLUMNS}) SELECT 'bob:' || n.i, {COLUMNS} "
                "FROM idempotency_record, n WHERE key = 'alice:first'",
                (copies,),
            )

    yield f"sqlite:///{path}", fill


@contextmanager
def postgres_store(_: Path) -> Iterator[tuple[str, Fill]]:
    with start_postgres() as dsn:

        def fill(copies: int) -> None:
            with psycopg.connect(dsn) as connection:
                listed = connection.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = 'idempotency_record'"
                ).fetchall()
                columns = ", ".join(name for (name,) in listed if name != "key")
                connection.execute(
                    f"INSERT INTO idempotency_record (key, {columns}) SELECT 'bob:' || n, {columns} "
                    f"FROM idempotency_record, generate_series(1, {copies}) n WHERE key = 'alice:first'"
                )

        yield f"{dsn}{'&' if '?' in dsn else '?'}deadline=30", fill


@contextmanager
def redis_store(_: Path) -> Iterator[tuple[str, Fill]]:
    import redis

    binary = find_binary()
    assert binary is not None, "no Redis server"
    with start_server(binary) as server, closing(redis.Redis.from_url(server.url)) as client:

        def fill(copies: int) -> None:
            (name,) = client.keys("*alice:first*")
            value: Any = client.get(name)
            for first in range(0, copies, 10_000):
                with client.pipeline(transaction=False) as batch:
                    for number in range(first, min(first + 10_000, copies)):
                        batch.set(
                            name.replace(b"alice:first", b"bob:%d" % number), value, px=int(KEEP * 1000)
                        )
                    batch.execute()

        yield f"{server.url}?deadline=30", fill


STORES = {"sqlite": sqlite_store, "redis": redis_store, "postgresql": postgres_store}


def fill_store(url: str, fill: Fill, records: int) -> None:
    """Write one completed record through the store, and copies of it up to *records*."""
    with closing(open_sync_store(url)) as store:
        store.create_schema()
        reply = store.acquire(
            storage_key("alice", "first"),
            fingerprint=Fingerprint(b"f" * 32),
            owner=Owner(b"o" * 16),
            lease=30.0,
            retention=KEEP,
        )
        assert isinstance(reply, Acquired)
        store.complete(reply.claim, ANSWER, retention=KEEP)
    fill(records - 1)


def milliseconds(client: TestClient, page: str) -> float:
    """Return the time of one request."""
    began = time.perf_counter()
    assert client.get(page).status_code == 200
    return (time.perf_counter() - began) * 1000


def main() -> int:
    """Fill a small and a large store, and compare their pages; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", choices=STORES)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--count", action="store_true")
    add_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.records = 2_000
    results = []
    with ExitStack() as stack:
        clients = {}
        for records in (1_000, options.records):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url, fill = stack.enter_context(STORES[options.store](folder))
            fill_store(url, fill, records)
            # Each client has its own event loop.
            clients[records] = stack.enter_context(TestClient(dashboard(open_store(url))))
        for name, page in PAGES.items():
            for client in clients.values():
                client.get(page)  # the first request connects to the store
            turns = range(2 if options.quick else ROUNDS)
            rounds = [[milliseconds(client, page) for client in clients.values()] for _ in turns]
            few, lots = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(
                f"{options.store:<11} {name:<28} {few:7.1f} ms of 1,000   {lots:7.1f} ms of {options.records:,}   "
                f"ratio {lots / few:.2f}"
            )
            results.append(
                Result(
                    name=f"{options.store}, {name}", value=lots / few, unit="× the page over 1,000 records"
                )
            )
        if options.count:
            began = time.perf_counter()
            page = clients[options.records].get("/totals?count=all").text
            total = re.search(r'all</th><td class="number">([^<]*)', page)
            assert total is not None
            print(
                f"{options.store:<11} totals: {total[1]} records counted in {time.perf_counter() - began:.0f} s"
            )
    return finish(options, results)


if __name__ == "__main__":
    sys.exit(main())
