"""
Kill a service at every step of a request, thousands of times; count what its clients were told and what happened.

    scripts/soak                                         every promise on every store that gives it
    scripts/soak T/postgres L/redis --requests 50000     some of them, longer

Prints one line of JSON for each run. Exits with 1 where a promise was broken, or where a step was never killed and so
nothing was shown. The seed fixes every choice of this program, not what the kernel does with its processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from application import application
from atomicity import Looks
from clients import Clients, Traffic, load
from faults import RENEWAL, Board, Fate, steps_of
from journal import Journal, read
from judge import judge
from places import Place, place_of
from workers import Workers, fork, serve

RUNS = ("T/sqlite", "T/postgres", "M/redis", "M/sqlite", "M/postgres", "L/redis", "L/sqlite", "L/postgres")
"""The promise, and the store: T needs a database that holds the effect, too."""

_SHOWN = 10  # violations that are spelled out


def main(options: argparse.Namespace) -> int:
    """Run, judge and report each; the exit code."""
    # The library logs each lost claim and each failing store: here that is what happens all the time.
    logging.getLogger("idempotency").setLevel(logging.CRITICAL)
    found = 0
    for run in options.runs or RUNS:
        mode, _, store = run.partition("/")
        with ExitStack() as stack:
            scratch = TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(scratch))
            place = stack.enter_context(place_of(store, directory))
            report, violations = soak(mode, options, directory, place)
        print(json.dumps({"run": run, "seed": options.seed, "lease": options.lease} | report), flush=True)
        for violation in violations[:_SHOWN]:
            print(f"{run}: {violation}", file=sys.stderr)
        found += len(violations)
    return 1 if found else 0


def soak(
    mode: str, options: argparse.Namespace, directory: Path, place: Place
) -> tuple[dict[str, Any], list[str]]:
    """One run, its files in *directory*: what it counted, and what was wrong with it."""
    traffic = Traffic(
        requests=options.requests,
        kills=options.kills,
        seconds=options.seconds,
        lease=options.lease,
        seed=options.seed,
        slow=options.slow,
        at_once=options.at_once,
    )
    # Without slow operations nobody runs long enough to renew.
    steps = [step for step in steps_of(mode) if options.slow > 0 or step != RENEWAL]
    board, journal = Board(steps), Journal(directory / "journal")

    async def worker(listener: socket.socket, chance: random.Random) -> None:
        fate = Fate(board, journal, chance, every=options.every, freezes=options.freezes)
        async with application(mode, place.url, options.lease, fate, journal) as app:
            await serve(app, listener)

    workers = Workers(
        worker,
        count=options.workers,
        lease=options.lease,
        harm_every=options.harm_every,
        freezes=options.freezes,
        seed=options.seed,
        board=board,
        journal=journal,
    )

    def send() -> None:
        clients = Clients(traffic, workers.ports, board)
        looks = Looks(place.torn if mode == "T" else None)
        asyncio.run(clients.run())
        looks.stop()
        clients.save(directory / "clients", looks=looks.count, torn=looks.torn)

    began = time.monotonic()
    ended_well = workers.run_until_exit_of(fork(send))
    seconds = time.monotonic() - began
    seen = load(directory / "clients") if ended_well else None
    if seen is None:
        return {}, ["the clients ended with an error"]
    verdict = judge(
        mode,
        options.lease,
        read(directory / "journal"),
        seen.operations,
        place.effects() if mode == "T" else (),
    )
    violations = verdict.violations
    violations += [f"I14: {seen.torn} times an effect or a record was there alone"] if seen.torn else []
    violations += [f"{workers.crashes} workers ended by themselves"] if workers.crashes else []
    violations += [f"never killed {step}" for step, kills in board.kills.items() if not kills]
    counts = verdict.counts
    report = {
        "seconds": round(seconds, 1),
        "requests": seen.requests,
        "operations": len(seen.operations),
        "effects": counts["effects"],
        "kills": sum(board.kills.values()) + workers.shots,
        "freezes": sum(board.freezes.values()) + workers.stops,
        "drains": workers.drains,
        "duplicates": counts["duplicates"],
        "unexplained": counts["unexplained"],
        **{name: counts[name] for name in ("lost", "phantom", "changed", "stuck", "unknown")},
        "violations": len(violations),
        "time_to_final": _spread([seconds for one in seen.operations for seconds in one.seconds]),
        "from_death_to_takeover": _spread(verdict.recoveries),
        **{
            name: counts[name]
            for name in ("takeovers", "late_writes_refused", "after_a_kill", "after_a_stall", "unmarked")
        },
        "looks": seen.looks,
        "kills_by_step": board.kills | {"at random": workers.shots},
        "freezes_by_step": board.freezes | {"at random": workers.stops},
    }
    shown = " ".join(violations[:_SHOWN])
    for event in read(directory / "journal") if violations else ():
        if f" {event.get('key')} " in f" {shown} ":
            print(json.dumps(event), file=sys.stderr)
    return report, violations


def _spread(seconds: Iterable[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [0.0]
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3) for name, part in at.items()
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.partition("\n\n")[0])
    named = f"of {', '.join(RUNS)}; all of them by default"
    parser.add_argument("runs", nargs="*", metavar="PROMISE/STORE", help=named)
    parser.add_argument("--requests", type=int, default=20_000, help="send at least so many")
    parser.add_argument("--kills", type=int, default=1, help="go on until each step has had so many kills")
    parser.add_argument("--seconds", type=float, default=1_800.0, help="begin nothing new after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=24, help="operations under way at a time")
    parser.add_argument("--lease", type=float, default=1.0, help="seconds")
    parser.add_argument(
        "--slow", type=float, default=0.02, help="share of operations that take about a lease"
    )
    parser.add_argument(
        "--every", type=int, default=25, help="a worker is struck after about so many passages"
    )
    parser.add_argument("--harm-every", type=float, default=2.0, help="mean seconds between random harms")
    parser.add_argument(
        "--freezes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="freeze workers too, not only kill them",
    )
    options = parser.parse_args()
    if unknown := set(options.runs) - set(RUNS):
        parser.error(f"{', '.join(unknown)}: there are {', '.join(RUNS)}")
    return options


if __name__ == "__main__":
    sys.exit(main(_options()))
