"""
What a page of the dashboard costs in a SQLite store of a million records, as a ratio to the same page over a thousand.

    uv run benchmarks/dashboard_pages.py [RECORDS]
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from starlette.testclient import TestClient

from idempotency import Acquired, Fingerprint, Owner, Response, storage_key
from idempotency._core.outcome import encode_response
from idempotency.dashboard import dashboard
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore

ANSWER = encode_response(Response(201, [(b"content-type", b"application/json")], b'{"charge": 1}' * 20))
PAGES = {
    "first page": "/",
    "a tenant that is not there": "/?tenant=zoe",
    "one record": "/record?key=alice:first",
}
ROUNDS = 15


def fill(path: Path, records: int) -> None:
    """A store of so many completed records."""
    with closing(SyncSQLiteStore(path, synchronous="OFF")) as store:
        reply = store.acquire(
            storage_key("alice", "first"),
            fingerprint=Fingerprint(b"f" * 32),
            owner=Owner(b"o" * 16),
            lease=30.0,
            retention=86_400.0,
        )
        assert isinstance(reply, Acquired)
        store.complete(reply.claim, ANSWER, retention=86_400.0)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO idempotency_record SELECT 'bob:' || n.i, version, fingerprint, owner, attempt, fence, boot, "
            "lease_until, retention, expires_at, completed_at, outcome FROM idempotency_record, n "
            "WHERE key = 'alice:first'",
            (records - 1,),
        )


def milliseconds(client: TestClient, page: str) -> float:
    """How long one request takes."""
    began = time.perf_counter()
    assert client.get(page).status_code == 200
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Fill two stores and compare."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        clients = {}
        for records in (1_000, many):
            path = Path(folder) / f"{records}.db"
            fill(path, records)
            clients[records] = TestClient(dashboard(SQLiteStore(path)))
        for name, page in PAGES.items():
            for client in clients.values():
                client.get(page)  # the first one opens the file
            rounds = [[milliseconds(client, page) for client in clients.values()] for _ in range(ROUNDS)]
            few, lots = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(f"{name:<28} {few:7.1f} ms of 1,000   {lots:7.1f} ms of {many:,}   ratio {lots / few:.2f}")


if __name__ == "__main__":
    main()
