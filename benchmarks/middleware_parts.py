"""
The function calls and bytecode instructions of the middleware in a first run and in a replay, part by part.

    uv run python benchmarks/middleware_parts.py      # prints the tables

Both are counted in one request over the memory store, after 41 others, and are the same on every machine with the same
version of Python. The microseconds are measured, and divided among the parts in proportion to the instructions. That is
an estimate: a C function such as SHA-256 counts as one instruction.

Here the variants take turns, request by request. `middleware.py` calls one variant a hundred times in a row: then the
processor predicts every branch of a short variant, such as the bare application, and few branches of a long one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

from middleware import HEADERS, charge, fresh, receive, scope, send
from middleware_floor import Floor
from starlette.applications import Starlette
from starlette.routing import Route

import idempotency
from idempotency import IdempotencyMiddleware, one_tenant
from idempotency.stores.memory import MemoryStore

ROUNDS, WARM = 4_000, 40
LIBRARY: Final = Path(idempotency.__file__).parent

# The purpose of each part, and its code: files, or single functions if a file has several parts.
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "find the policy and the key's header; guard the request (E6, E10)": ("asgi/middleware.py",),
    "read the key strictly, ask for the tenant, name the record": ("_core/key.py", "asgi/tenants.py"),
    "read the body within limits and a deadline": ("_runtime/poll_once.py", "asgi/request_body.py"),
    "compute the fingerprint (E9)": ("_core/fingerprint.py", "_core/media_type.py"),
    "claim the key, with a token of its own; decide": (
        "engine/async_engine.py:Engine.begin",
        "engine/owner.py",
        "_core/protocol.py:follows_duplicate",
        "_core/protocol.py:verdict_of",
    ),
    "the memory store: claim, record, expiry": ("stores/memory/__init__.py", "stores/memory/expiry_wheel.py"),
    "keep the lease alive (E3); lead duplicates": (
        "engine/async_engine.py",
        "engine/heartbeat.py",
        "engine/run.py:Run.__init__",
        "engine/run.py:Run._stop",
        "_core/protocol.py:leads_duplicates",
        "_runtime/event_loop.py",
    ),
    "run the application inside its claim (E5, E6, E10)": (
        "asgi/recorder.py:ResponseRecorder.__init__",
        "asgi/recorder.py:ResponseRecorder.run",
        "asgi/recorder.py:ResponseRecorder.enter",
        "asgi/recorder.py:ResponseRecorder.receive",
        "asgi/recorder.py:ResponseRecorder.returned",
        "asgi/recorder.py:ResponseRecorder.leave",
        "asgi/scope.py",
        "engine/current_claim.py",
    ),
    "hold the answer back; tell streams and routers' answers (E1, E2)": (
        "asgi/recorder.py",
        "asgi/before_handler.py",
    ),
    "decide whether it is an outcome": (
        "asgi/recorder.py:ResponseRecorder._is_kept",
        "_core/protocol.py:settle",
        "_core/policy.py",
    ),
    "write its record (E7)": (
        "_http/recorded_answer.py",
        "_core/recorded.py:encode_recorded",
        "_core/recorded.py:_unrecordable",
        "_core/outcome.py",
    ),
    "record it and learn what became of it (E8)": (
        "engine/run.py",
        "engine/base.py",
        "_core/protocol.py:recorded",
    ),
    "send it, without headers that only the middleware sets": (
        "asgi/recorder.py:ResponseRecorder._flush",
        "asgi/recorder.py:ResponseRecorder._let_disconnects_pass",
    ),
    "read the record and check that it may be sent": (
        "_core/recorded.py",
        "_core/_speedups.py",
        "_core/outcome.py:decode",
        "_core/outcome.py:is_safe",
    ),
    "mark the replay and send it": (
        "_core/replay.py",
        "asgi/middleware.py:_RequestHandler.replay",
        "asgi/middleware.py:_RequestHandler._send_response",
    ),
}
_PART_OF: Final = {place: part for part, places in PARTS.items() for place in places}


class Part(NamedTuple):
    """The function calls and bytecode instructions of one part."""

    calls: int
    instructions: int


class _Counting:
    """Counts the calls and instructions of functions in files below *folder* while it traces."""

    def __init__(self, folder: Path) -> None:
        self._folder = f"{folder}/"
        self.calls: Counter[str] = Counter()
        self.instructions: Counter[str] = Counter()

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(self._folder):
            return None
        file = code.co_filename.removeprefix(self._folder)
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self.calls[f"{file}:{code.co_qualname}"] += 1
        elif event == "opcode":
            self.instructions[f"{file}:{code.co_qualname}"] += 1
        return self.trace


async def count(app: Any, key: Callable[[], bytes], folder: Path) -> dict[str, Part]:
    """Count one request's calls and instructions in files below *folder*, by function ("file:name")."""
    for _ in range(WARM):
        await app(_request(key()), receive, send)
    requests, counting = [_request(key()), _request(key())], _Counting(folder)
    before = sys.gettrace()
    # Python 3.12 reports instructions only if a frame asked for them before `settrace` (it is not traced itself),
    # 3.13 reports a function's from its second traced call on. So two requests are traced, and the second counts.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(counting.trace)
    try:
        for request in requests:
            counting.calls.clear()
            counting.instructions.clear()
            await app(request, receive, send)
    finally:
        sys.settrace(before)
    return {name: Part(counting.calls[name], counting.instructions[name]) for name in counting.instructions}


def by_part(functions: dict[str, Part]) -> dict[str, Part]:
    """
    Return the sums of *functions* by part, in the order of `PARTS`.

    Raises:
        KeyError: A function has no part.
    """
    calls: Counter[str] = Counter()
    instructions: Counter[str] = Counter()
    for name, done in functions.items():
        place = name.partition(".<locals>")[0]
        part = _PART_OF[place if place in _PART_OF else place.partition(":")[0]]
        calls[part] += done.calls
        instructions[part] += done.instructions
    return {part: Part(calls[part], instructions[part]) for part in PARTS if part in calls}


def _request(key: bytes | None) -> dict[str, Any]:
    return scope("/charges", [*HEADERS, (b"idempotency-key", key)] if key else [*HEADERS])


def new_key() -> bytes:
    """Return a key that was never sent."""
    return b"k-%d" % next(fresh)


async def time_in_turn(variants: dict[str, tuple[Any, Callable[[], bytes | None]]]) -> dict[str, float]:
    """Return the median microseconds of CPU time of a request of each variant, with the variants in turn."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, (app, key) in variants.items():
            request = _request(key())
            began = time.thread_time()
            await app(request, receive, send)
            times[name].append(time.thread_time() - began)
    return {name: sorted(samples)[len(samples) // 2] * 1e6 for name, samples in times.items()}


def applications() -> tuple[Any, Any, Any]:
    """Return the bare application, the application behind the middleware, and behind the floor."""
    bare = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
    return bare, IdempotencyMiddleware(bare, store=MemoryStore(), tenant=one_tenant()), Floor(bare)


class Kind(NamedTuple):
    """The parts of a first run or of a replay, and its microseconds."""

    parts: dict[str, Part]
    microseconds: float

    def cells(self, name: str) -> str:
        """Return calls, instructions and microseconds of the part *name*, or of all for "in all"."""
        done = self.parts.get(name, Part(0, 0)) if name != "in all" else self.total()
        share = self.microseconds * done.instructions / self.total().instructions
        return f"{done.calls} | {done.instructions:,} | {share:.1f}" if done.calls else " |  | "

    def total(self) -> Part:
        """Return the sum of all parts."""
        return Part(*(sum(column) for column in zip(*self.parts.values(), strict=True)))


def table(first: Kind, replay: Kind) -> str:
    """Return a Markdown table of both kinds side by side."""
    columns = "calls | instructions | μs"
    rows = [f"| {name} | {first.cells(name)} | {replay.cells(name)} |" for name in (*PARTS, "in all")]
    return "\n".join([f"| | first run: {columns} | replay: {columns} |", f"|{' --- |' * 7}", *rows])


async def main() -> None:
    bare, guarded, floor = applications()
    first = by_part(await count(guarded, new_key, LIBRARY))
    replay = by_part(await count(guarded, lambda: b"replayed", LIBRARY))
    least = await count(floor, new_key, Path(__file__).parent)
    took = await time_in_turn(
        {
            "bare application": (bare, lambda: None),
            "first run": (guarded, new_key),
            "replay": (guarded, lambda: b"replayed"),
            "floor, first run": (floor, new_key),
        }
    )
    alone = took["bare application"]
    for name, microseconds in took.items():
        print(f"{name}: {microseconds:.1f} μs, {microseconds / alone:.2f} × the bare application")
    added, floor_added = took["first run"] - alone, took["floor, first run"] - alone
    print(f"a first run adds {added / floor_added:.2f} times what the floor adds")
    floor_total = sum(
        done.instructions for name, done in least.items() if name.startswith("middleware_floor.py")
    )
    print(f"the floor of a first run executes {floor_total} bytecode instructions, in {floor_added:.1f} μs")
    print(table(Kind(first, added), Kind(replay, took["replay"])))


if __name__ == "__main__":
    asyncio.run(main())
