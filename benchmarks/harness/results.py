"""
Results of benchmarks with their goals, printed as verdicts and written as JSON for `scripts/bench`.

A benchmark adds `add_options` to its parser and ends with `finish`; what it prints on the way is its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Result", "add_options", "finish"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of one run, and the goal that it is judged by."""

    name: str
    value: float
    unit: str
    """What the figure is a multiple of, such as "× the bare application", or a unit, such as "MiB"."""
    goal: float | None = None
    at_least: bool = False
    """Whether the goal is the least that will do; else it is the most."""
    also: str = ""
    """By what else the goal is held, in words: "or 20 ms more". Then *held* says whether it is."""
    held: bool | None = None
    """By default, whether *value* reaches *goal*; None without a goal."""
    binds: bool = True
    """False where the goal was set for other machines than this one, and is for comparison."""

    def __post_init__(self) -> None:
        if self.held is None and self.goal is not None:
            reached = self.value >= self.goal if self.at_least else self.value <= self.goal
            object.__setattr__(self, "held", bool(reached))  # of NumPy's numbers it is NumPy's

    @property
    def missed(self) -> bool:
        """Whether a goal that binds here is missed."""
        return self.binds and self.held is False

    @property
    def verdict(self) -> str:
        """The goal and whether it is held, to print behind the figure; empty without a goal."""
        if self.goal is None:
            return ""
        sign = ">=" if self.at_least else "<="
        outcome = "ok" if self.held else "MISSED" if self.binds else "below"
        return f"goal {sign} {self.goal:.4g}{self.also and f', {self.also}'}  {outcome}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, small sizes: shows only that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")


def finish(options: argparse.Namespace, results: Sequence[Result]) -> int:
    """Write *results* where they were asked for; returns the exit code: 1 where `--check` finds a missed goal."""
    if options.json is not None:
        listed = [asdict(result) for result in results]
        options.json.write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(options.check and any(result.missed for result in results))
