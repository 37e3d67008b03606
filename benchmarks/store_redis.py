"""
The cost of the Redis store, as ratios to the fewest Redis commands that do the same, side by side in one process.

    uv run python benchmarks/store_redis.py                 # starts a server; prints the table
    uv run python benchmarks/store_redis.py --url redis://… # uses another server
    uv run python benchmarks/store_redis.py --check         # exits 1 if a goal is missed

Blocks of calls alternate between the two sides, so that other work affects both; the median of the blocks' ratios
counts. Every first run uses a new key. The bare commands go through the same client library with the same parser:
redis-py, hiredis.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import redis.asyncio
from harness.results import Result, add_options, finish

from idempotency import Acquired, Fingerprint, Owner, StorageKey
from idempotency.stores.redis import RedisStore, records

sys.path.insert(0, str(Path(__file__).parents[1] / "packages/idempotency/tests/support"))
from redis_servers import find_binary, start_server

BLOCKS, CALLS, TASKS = 31, 50, 64
SIZES = (1_024, 32_768, 262_144)
FINGERPRINT, ME, OTHER = Fingerprint(b"f" * 32), Owner(b"m" * 16), Owner(b"o" * 16)
AT_MOST = {"replay of 1 KiB": 1.25, "replay of 32 KiB": 1.25, "first run of 1 KiB": 1.25}
AT_LEAST = {f"{TASKS} at once": 3.0}

Call = Callable[[], Awaitable[object]]


async def block_us(call: Call) -> float:
    """Return the microseconds per call, one call after another."""
    started = time.perf_counter()
    for _ in range(CALLS):
        await call()
    return (time.perf_counter() - started) / CALLS * 1e6


async def at_once_us(call: Call) -> float:
    """Return the microseconds per call, with TASKS calls at a time."""
    turns = iter(range(TASKS * 10))

    async def task() -> None:
        for _ in turns:
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(task() for _ in range(TASKS)))
    return (time.perf_counter() - started) / (TASKS * 10) * 1e6


class Ratio(NamedTuple):
    """The microseconds of the bare commands and of the store, and their ratio."""

    floor: float
    store: float
    ratio: float


async def compare(
    measure: Callable[[Call], Awaitable[float]], floor: Call, ours: Call, *, blocks: int
) -> Ratio:
    pairs = [(await measure(floor), await measure(ours)) for _ in range(blocks)]
    columns = [*zip(*pairs, strict=True), [ours / floor for floor, ours in pairs]]
    return Ratio(*map(statistics.median, columns))


class Bench:
    """Measures the two sides of every ratio."""

    def __init__(self, client: redis.asyncio.Redis, blocks: int) -> None:
        self.client, self.blocks = client, blocks
        self.store = RedisStore(client, prefix="bench:", deadline=10.0)
        self.names = (f"{time.time_ns()}-{number}" for number in itertools.count())

    async def acquire(self, key: StorageKey, owner: Owner = OTHER) -> object:
        return await self.store.acquire(key, fingerprint=FINGERPRINT, owner=owner, lease=30.0, retention=60.0)

    async def first_run(self, outcome: bytes) -> StorageKey:
        reply = await self.acquire(StorageKey(next(self.names)), ME)
        assert isinstance(reply, Acquired)
        await self.store.complete(reply.claim, outcome, retention=60.0)
        return reply.claim.key

    async def two_sets(self, value: bytes) -> None:
        name = f"bench:floor:{next(self.names)}"
        await self.client.set(name, b"x" * 200, nx=True, px=90_000)
        await self.client.set(name, value, px=60_000)

    async def compare(self, measure: Callable[[Call], Awaitable[float]], floor: Call, ours: Call) -> Ratio:
        return await compare(measure, floor, ours, blocks=self.blocks)

    async def run(self) -> dict[str, Ratio]:
        found: dict[str, Ratio] = {}
        for size in SIZES:
            outcome = b'{"body":"' + b"x" * size + b'"}'
            key = await self.first_run(outcome)
            await self.client.set("bench:floor", await self.client.get(f"bench:{key}"), px=600_000)
            found[f"replay of {size // 1024} KiB"] = await self.compare(
                block_us, lambda: self.client.get("bench:floor"), lambda key=key: self.acquire(key)
            )
        small = b'{"body":"' + b"x" * SIZES[0] + b'"}'
        found["first run of 1 KiB"] = await self.compare(
            block_us, lambda: self.two_sets(small), lambda: self.first_run(small)
        )
        key = await self.first_run(small)
        names = records.Names("bench:", cluster=False)
        command = records.acquire(names.record(key), FINGERPRINT, OTHER, 30.0, 60.0, True, names.fence(key))
        assert command.script is not None
        words = ("EVALSHA", command.script.sha, 1, command.key, *command.args)
        found[f"{TASKS} at once"] = await self.compare(
            at_once_us, lambda: self.client.execute_command(*words), lambda: self.acquire(key)
        )
        return found


async def measure(url: str, blocks: int) -> dict[str, Ratio]:
    async with redis.asyncio.Redis.from_url(url, max_connections=TASKS) as client:
        bench = Bench(client, blocks)
        try:
            return await bench.run()
        finally:
            await bench.store.aclose()


def main() -> int:
    parser = argparse.ArgumentParser(description="Ratios of the Redis store to bare commands.")
    parser.add_argument("--url", help="a running server; default: start one")
    add_options(parser)
    options = parser.parse_args()
    binary = find_binary()
    if options.url is None and binary is None:
        parser.error("no Redis server found: run `uv sync`, or pass --url")
    with nullcontext(SimpleNamespace(url=options.url)) if options.url else start_server(binary) as server:
        found = asyncio.run(measure(server.url, 1 if options.quick else BLOCKS))
    results = []
    for name, cost in found.items():
        if name in AT_LEAST:
            result = Result(
                name=name,
                value=1 / cost.ratio,
                unit="× the throughput of one command a connection",
                goal=AT_LEAST[name],
                at_least=True,
            )
        else:
            floor = "two bare SETs" if name.startswith("first run") else "one GET"
            result = Result(name=name, value=cost.ratio, unit=f"× {floor}", goal=AT_MOST.get(name))
        results.append(result)
        print(
            f"{name:<20} floor {cost.floor:7.1f} us  store {cost.store:7.1f} us  ratio {result.value:5.2f}  "
            f"{result.verdict}"
        )
    return finish(options, results)


if __name__ == "__main__":
    sys.exit(main())
