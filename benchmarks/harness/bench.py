"""
Runs the benchmarks, keeps their results as JSON, and draws charts and tables for the documentation.

    scripts/bench                       all benchmarks, about half an hour; run nothing else at the same time
    scripts/bench NAME...               these benchmarks; replaces their kept results; `--list` lists the names
    scripts/bench --runs 5 NAME...      this number of runs of each
    scripts/bench --add NAME...         further runs, added to the kept ones; on the same machine only
    scripts/bench --quick [NAME...]     few rounds and small sizes, to see that they run; results only in --folder
    scripts/bench --plots               draw charts and tables again from the kept JSON
    scripts/bench --plots --check       exit 1 if a chart or table does not match the JSON

Each run is a separate process, and its results are kept as soon as it ends. All kept results of a benchmark are from
one machine.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.figures import FOLDER, Machine, Measurements, Run
from harness.pages import PAGE, with_figures
from harness.plots import draw
from harness.results import Result

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its command and its results."""

    command: tuple[str, ...]
    """The script, relative to the root of the repository, and its arguments."""
    runs: int = 3
    """Runs by default; 1 for a benchmark that takes some minutes."""
    peers: tuple[str, ...] = ()
    """Engines to compare with, which the project does not install; a quick run does without them."""

    @property
    def arguments(self) -> list[str]:
        """The command as a list of arguments, in the project's environment and with the peers."""
        return [
            "uv",
            "run",
            *(word for peer in self.peers for word in ("--with", peer)),
            "python",
            *self.command,
        ]

    @property
    def shown(self) -> str:
        """The command for a shell."""
        return shlex.join(self.arguments)


BENCHMARKS = {
    "middleware": Benchmark(("benchmarks/middleware.py",)),
    "store_local": Benchmark(("benchmarks/store_local.py",)),
    "store_redis": Benchmark(("benchmarks/store_redis.py",)),
    "store_sizes": Benchmark(("benchmarks/store_sizes.py",)),
    "dashboard_sqlite": Benchmark(("benchmarks/dashboard_pages.py", "sqlite")),
    "dashboard_redis": Benchmark(("benchmarks/dashboard_pages.py", "redis")),
    "dashboard_postgresql": Benchmark(("benchmarks/dashboard_pages.py", "postgresql")),
    "failover": Benchmark(("benchmarks/failover.py",), runs=1),
    "predictor": Benchmark(
        ("benchmarks/predictor_bench.py",), peers=("lleaves==1.3.0", "llvmlite<0.45", "pylignum")
    ),
    "predictor_large": Benchmark(("benchmarks/predictor_large.py",)),
    "predictor_exactness": Benchmark(("benchmarks/predictor_exactness.py",), runs=1),
    "decision": Benchmark(("benchmarks/service/decision.py",)),
    "load": Benchmark(("benchmarks/service/load.py",), runs=1),
}


def measure(benchmark: Benchmark, *, quick: bool) -> Run:
    """
    Run *benchmark* once.

    Raises:
        RuntimeError: The process failed, or wrote no results.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.json")
        ours = quick or not benchmark.peers
        command = [sys.executable, *benchmark.command] if ours else benchmark.arguments
        command = [*command, "--json", str(path), *(["--quick"] if quick else [])]
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode or not path.exists():
            raise RuntimeError(f"{benchmark.shown} ended with {done.returncode}")
        results = tuple(Result(**found) for found in json.loads(path.read_text(encoding="utf-8")))
    return Run(
        measured=dt.datetime.now(dt.UTC).date().isoformat(),
        seconds=round(time.monotonic() - began),
        load=round(load, 1),
        results=results,
    )


def run(names: Sequence[str], folder: Path, *, runs: int | None, add: bool, quick: bool) -> int:
    """Run the benchmarks *names*, and keep their results in *folder*; return the exit code."""
    machine, failed = Machine.here(), False
    for name in names:
        benchmark = BENCHMARKS[name]
        kept = Measurements.read(folder / f"{name}.json") if add else None
        if kept is not None and (kept.machine, kept.command) != (machine, benchmark.shown):
            print(
                f"bench: {name} was measured on another machine or by another command; run it without --add",
                file=sys.stderr,
            )
            return 1
        done = kept.runs if kept is not None else ()
        for _ in range(1 if quick else runs or benchmark.runs):
            print(f"== {name}: {benchmark.shown}", flush=True)
            try:
                done = (*done, measure(benchmark, quick=quick))
            except RuntimeError as error:
                print(f"bench: {error}", file=sys.stderr)
                failed = True
                break
            found = Measurements(benchmark=name, command=benchmark.shown, machine=machine, runs=done)
            found.write(folder / f"{name}.json")
            (folder / f"{name}.svg").write_text(draw(found), encoding="utf-8")
    return int(failed)


def drawn() -> dict[Path, str]:
    """Return the charts and the page, as made from the kept JSON."""
    kept = {path.stem: Measurements.read(path) for path in sorted(FOLDER.glob("*.json"))}
    texts = {FOLDER / f"{name}.svg": draw(found) for name, found in kept.items()}
    return texts | {PAGE: with_figures(PAGE.read_text(encoding="utf-8"), kept)}


def redraw(*, check: bool) -> int:
    """Write the files that are out of date; with *check*, only list them and return 1."""
    texts = drawn()
    stray = [path for path in FOLDER.glob("*.svg") if path not in texts]
    stale = [
        path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in [*stale, *stray]:
        done = "drawn" if path in texts else "deleted"
        print(f"{path.relative_to(ROOT)} {'does not match the JSON' if check else done}")
        if not check and path in texts:
            path.write_text(texts[path], encoding="utf-8")
        elif not check:
            path.unlink()
    if check and (stale or stray):
        print("run scripts/bench --plots", file=sys.stderr)
        return 1
    return 0


def _path(text: str) -> Path:
    return Path(text).resolve()


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--runs", type=int, help="runs of each benchmark; default: 3, or 1 if it takes long")
    parser.add_argument("--add", action="store_true", help="keep earlier runs too")
    parser.add_argument("--quick", action="store_true", help="only see that they run")
    parser.add_argument("--plots", action="store_true", help="draw the kept results again, and run nothing")
    parser.add_argument(
        "--check", action="store_true", help="with --plots: exit 1 if a chart or table is out of date"
    )
    parser.add_argument("--list", action="store_true", help="list the names and commands")
    parser.add_argument("--folder", type=_path, help="where results are kept; default: benchmarks/figures")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if options.check and not options.plots:
        parser.error("--check goes with --plots")
    if options.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:<22}{benchmark.shown}")
        return 0
    if options.plots:
        return redraw(check=options.check)
    names = options.names or list(BENCHMARKS)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    if options.quick:
        with tempfile.TemporaryDirectory() as scratch:
            return run(names, options.folder or Path(scratch), runs=1, add=False, quick=True)
    folder = options.folder or FOLDER
    code = run(names, folder, runs=options.runs, add=options.add, quick=False)
    if folder == FOLDER:  # also if some benchmarks failed
        redraw(check=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
