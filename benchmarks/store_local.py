"""
The cost of the stores without a server, as ratios measured side by side in one process.

    uv run python benchmarks/store_local.py            # prints the table
    uv run python benchmarks/store_local.py --check    # exits 1 if a goal is missed
    uv run python benchmarks/store_local.py --directory /var/lib/app   # SQLite on that disk

Memory: each call with 10,000 and 1,000,000 records in the store, compared with the same call in an empty store. SQLite:
a replay compared with one SELECT of the same row, and a first run (claim, then outcome) compared with two transactions
of one statement, with the same durability on the same disk. Blocks of calls alternate; the median of the blocks counts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from harness.results import Result, add_options, finish

from idempotency import Acquired, Fingerprint, Owner, StorageKey, SyncStore
from idempotency.stores.memory import SyncMemoryStore
from idempotency.stores.sqlite import SQLiteStore

BLOCKS, CALLS = 21, 200
SIZES = (10_000, 1_000_000)
FINGERPRINT, OUTCOME = Fingerprint(b"f" * 32), b'{"status":201,"headers":[],"body":"' + b"x" * 300 + b'"}'
OWNER, OTHER = Owner(b"o" * 16), Owner(b"p" * 16)
DAY = 86_400.0  # s of retention; the records of a filled store expire evenly over a day
FLAT = 1.5  # goal for a million records: only the processor's caches may make a call slower
REPLAY_US = 40.0  # goal: at most this much more than the bare statement
FIRST_RUN_US = 120.0  # goal: at most this much more than the bare statements
FIRST_RUN_SYNCED = 1.6  # or at most this many times the bare statements, if each waits for a sync of the disk
fresh = itertools.count()


def claim_and_complete(store: SyncStore, key: StorageKey, retention: float = DAY) -> tuple[float, float]:
    """Return the seconds of the claim and of the completion."""
    began = time.perf_counter()
    reply = store.acquire(key, fingerprint=FINGERPRINT, owner=OWNER, lease=30.0, retention=retention)
    claimed = time.perf_counter()
    assert isinstance(reply, Acquired)
    store.complete(reply.claim, OUTCOME, retention=retention)
    return claimed - began, time.perf_counter() - claimed


def replay(store: SyncStore, key: StorageKey) -> float:
    began = time.perf_counter()
    store.acquire(key, fingerprint=FINGERPRINT, owner=OTHER, lease=30.0, retention=DAY)
    return time.perf_counter() - began


def memory(blocks: int, sizes: tuple[int, ...]) -> Iterator[Result]:
    stores = {records: SyncMemoryStore(max_records=2_000_000) for records in (0, *sizes)}
    for records, store in stores.items():
        for number in range(records):
            claim_and_complete(store, StorageKey(f"old-{number}"), DAY * (number + 1) / records)
    names = ("acquire", "complete", "replay")
    times: dict[tuple[int, str], list[float]] = {(n, name): [] for n in stores for name in names}
    for _ in range(blocks):
        for records, store in stores.items():
            keys = [StorageKey(f"new-{next(fresh)}") for _ in range(CALLS)]
            claims, completions = zip(*(claim_and_complete(store, key) for key in keys), strict=True)
            replays = [replay(store, key) for key in keys]
            for name, samples in zip(names, (claims, completions, replays), strict=True):
                times[records, name].append(statistics.median(samples))
    for (records, name), samples in times.items():
        micros = statistics.median(samples) * 1e6
        ratio = statistics.median(samples) / statistics.median(times[0, name])
        result = Result(
            name=f"memory, {name}, {records:,} records", value=ratio, unit="× an empty store", goal=FLAT
        )
        print(f"memory {name:9} {records:9,} records {micros:6.2f} us {ratio:5.2f} x empty  {result.verdict}")
        if records:
            yield result


async def timed(call: Callable[[StorageKey], Awaitable[object]], keys: list[StorageKey]) -> float:
    """Return the seconds per call."""
    began = time.perf_counter()
    for key in keys:
        await call(key)
    return (time.perf_counter() - began) / len(keys)


async def sqlite(directory: Path, synchronous: str, blocks: int) -> list[Result]:
    store = SQLiteStore(directory / f"{synchronous}.db", synchronous=synchronous)
    bare = sqlite3.connect(directory / f"bare-{synchronous}.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute(f"PRAGMA synchronous={synchronous}")
    bare.execute("CREATE TABLE record (key TEXT PRIMARY KEY, outcome BLOB)")

    async def transaction(key: StorageKey) -> None:
        for suffix in "ab":
            bare.execute("BEGIN IMMEDIATE")
            bare.execute("INSERT INTO record VALUES (?, ?)", (key + suffix, OUTCOME))
            bare.execute("COMMIT")

    async def select(key: StorageKey) -> None:
        bare.execute("SELECT * FROM record WHERE key = ?", (f"{key}a",)).fetchone()

    async def first_run(key: StorageKey) -> None:
        reply = await store.acquire(key, fingerprint=FINGERPRINT, owner=OWNER, lease=30.0, retention=DAY)
        assert isinstance(reply, Acquired)
        await store.complete(reply.claim, OUTCOME, retention=DAY)

    async def again(key: StorageKey) -> None:
        await store.acquire(key, fingerprint=FINGERPRINT, owner=OTHER, lease=30.0, retention=DAY)

    calls = {"2 transactions": transaction, "first run": first_run, "1 select": select, "replay": again}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(blocks):
        keys = [StorageKey(f"new-{next(fresh)}") for _ in range(CALLS)]
        for name, call in calls.items():
            times[name].append(await timed(call, keys))
    bare.close()
    await store.aclose()
    results = []
    for name, floor, goal in (
        ("first run", "2 transactions", FIRST_RUN_US),
        ("replay", "1 select", REPLAY_US),
    ):
        micros, least = statistics.median(times[name]) * 1e6, statistics.median(times[floor]) * 1e6
        title, over = f"SQLite, synchronous={synchronous}, {name}", micros - least
        if synchronous == "FULL" and name == "first run":
            held = over <= goal or micros <= FIRST_RUN_SYNCED * least
            also = f"or {goal:.0f} us over them"
            result = Result(
                name=title,
                value=micros / least,
                unit="× two bare transactions",
                goal=FIRST_RUN_SYNCED,
                also=also,
                held=held,
            )
        else:
            result = Result(name=title, value=over, unit="us over the bare statements", goal=goal)
        print(
            f"sqlite {synchronous:6} {name:9} {micros:7.1f} us, {floor} {least:6.1f} us: {micros / least:5.2f} x, "
            f"{over:+6.1f} us  {result.verdict}"
        )
        results.append(result)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "--directory", type=Path, help="where the SQLite files are made; default: a temporary one"
    )
    arguments = parser.parse_args()
    blocks = 2 if arguments.quick else BLOCKS
    results = [*memory(blocks, (100, 1_000) if arguments.quick else SIZES)]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for synchronous in ("FULL", "NORMAL"):
            results += asyncio.run(sqlite(Path(directory), synchronous, blocks))
    return finish(arguments, results)


if __name__ == "__main__":
    sys.exit(main())
