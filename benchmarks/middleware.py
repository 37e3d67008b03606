"""
The cost of the middleware, as ratios to the same application without it, measured side by side in one process.

    uv run python benchmarks/middleware.py            # prints the table
    uv run python benchmarks/middleware.py --check    # exits 1 if a goal is missed

The application is Starlette with two routes, one with a small JSON response and one with 4 kB. It is called through
ASGI without a server, so the ratios are as large as they can be. Blocks of calls alternate between the variants. Each
variant is judged by its block with the least CPU time; the median block is printed beside it, and on a busy machine the
two differ much. First runs use new keys; replays use a thousand keys in turn.

The rows called floor are `middleware_floor.py`: the least that Python can do. They are not a goal, because that code is
not safe to use. They show how much of a missed goal can be reached at all.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from harness.results import Result, add_options, finish
from middleware_floor import Floor
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from idempotency import Fingerprint, IdempotencyMiddleware, Owner, StorageKey, one_tenant
from idempotency.stores.memory import MemoryStore

BLOCKS, CALLS, RECORDS = 151, 100, 1_000_000
HEADERS = [
    (b"host", b"example"),
    (b"user-agent", b"bench"),
    (b"accept", b"*/*"),
    (b"content-type", b"application/json"),
    (b"content-length", b"13"),
]
SIGNAL = {"feature": "rsi_14", "value": 56.0168, "rule": ">60 = overbought zone", "contribution": "bearish"}
REPORT = {"signals": [SIGNAL] * 40}  # 4 kB of JSON: one character in seven is a quotation mark, as is usual
GOALS = {"no key": 1.03, "replay": 1.0}
ADDED_GOAL = 2.0  # a first run, over what the floor adds to the bare application
fresh = itertools.count()
replayed_keys = itertools.cycle([b"replayed-%d" % number for number in range(1_000)])


async def charge(request: Request) -> Response:
    await request.body()
    return JSONResponse({"charge": 1}, 201)


async def report(request: Request) -> Response:
    await request.body()
    return JSONResponse(REPORT, 201)


def scope(path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "extensions": {},
    }


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b'{"amount": 5}', "more_body": False}


async def send(_message: Any) -> None:
    return None


async def block(app: Any, key: Callable[[], bytes | None], path: str = "/charges") -> float:
    """Seconds of CPU time per call."""
    requests = []
    for _ in range(CALLS):
        name = key()
        requests.append(scope(path, [*HEADERS, (b"idempotency-key", name)] if name else [*HEADERS]))
    began = time.thread_time()
    for request in requests:
        await app(request, receive, send)
    return (time.thread_time() - began) / CALLS


async def fill(store: MemoryStore, records: int) -> None:
    for number in range(records):
        key, owner = StorageKey(f"old-{number}"), Owner(number.to_bytes(16, "big"))
        await store.acquire(key, fingerprint=Fingerprint(b"f"), owner=owner, lease=30, retention=86_400)


async def measure(blocks: int, records: int) -> dict[str, list[float]]:
    bare = Starlette(
        routes=[Route("/charges", charge, methods=["POST"]), Route("/report", report, methods=["POST"])]
    )

    def guarded(store: MemoryStore) -> IdempotencyMiddleware:
        return IdempotencyMiddleware(bare, store=store, tenant=one_tenant())

    full = MemoryStore(max_records=3_000_000)
    await fill(full, records)
    small, reports = MemoryStore(max_records=3_000_000), MemoryStore()
    variants: dict[str, tuple[Any, Callable[[], bytes | None], str]] = {
        "bare": (bare, lambda: None, "/charges"),
        "no key": (guarded(small), lambda: None, "/charges"),
        "first run": (guarded(small), lambda: b"k-%d" % next(fresh), "/charges"),
        f"first run, {records:,} records": (guarded(full), lambda: b"k-%d" % next(fresh), "/charges"),
        "replay": (guarded(small), lambda: next(replayed_keys), "/charges"),
        "floor, first run": (Floor(bare), lambda: b"k-%d" % next(fresh), "/charges"),
        "floor, replay": (Floor(bare), lambda: next(replayed_keys), "/charges"),
        "bare, 4 kB": (bare, lambda: None, "/report"),
        "first run, 4 kB": (guarded(small), lambda: b"k-%d" % next(fresh), "/report"),
        "replay, 4 kB": (guarded(reports), lambda: next(replayed_keys), "/report"),
        "floor, first run, 4 kB": (Floor(bare), lambda: b"k-%d" % next(fresh), "/report"),
        "floor, replay, 4 kB": (Floor(bare), lambda: next(replayed_keys), "/report"),
    }
    for name in ("replay", "floor, replay", "replay, 4 kB", "floor, replay, 4 kB"):
        for _ in range(1_000 // CALLS):
            await block(*variants[name])  # after this every key has a record
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(blocks):
        for name, variant in variants.items():
            times[name].append(await block(*variant))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    arguments = parser.parse_args()
    times = asyncio.run(measure(2, 1_000) if arguments.quick else measure(BLOCKS, RECORDS))
    results = []
    print(f"{'':32} {'least':>10}  {'x bare':>6}  {'median':>10}  {'x bare':>6}")
    for name, samples in times.items():
        bare = times["bare, 4 kB" if name.endswith("4 kB") else "bare"]
        least, middle = min(samples), median(samples)
        result = Result(
            name=name, value=least / min(bare), unit="× the bare application", goal=GOALS.get(name)
        )
        columns = f"{least * 1e6:7.1f} us  {result.value:6.2f}  {middle * 1e6:7.1f} us  {middle / median(bare):6.2f}"
        print(f"{name:32} {columns}  {result.verdict}")
        if samples is not bare:
            results.append(result)
    added = Result(
        name="what a first run adds", value=_added(times, min), unit="× what the floor adds", goal=ADDED_GOAL
    )
    print(
        f"a first run adds {added.value:.2f} times what the floor adds (medians: {_added(times, median):.2f})"
        f"  {added.verdict}"
    )
    return finish(arguments, [*results, added])


def _added(times: dict[str, list[float]], kind: Callable[[list[float]], float]) -> float:
    """Return the time that a first run adds to the bare application, divided by the time that the floor adds."""
    bare = kind(times["bare"])
    return (kind(times["first run"]) - bare) / (kind(times["floor, first run"]) - bare)


if __name__ == "__main__":
    sys.exit(main())
