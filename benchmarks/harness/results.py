"""
Results of benchmarks and their goals, printed with a verdict, and written as JSON for `scripts/bench`.

A benchmark calls `add_options` on its parser, and `finish` at the end; it prints its own text.
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
    """One measured value of one run, and its goal."""

    name: str
    value: float
    unit: str
    """A unit, such as "MiB", or for a ratio what it is a multiple of, such as "× the bare application"."""
    goal: float | None = None
    at_least: bool = False
    """Whether the goal is a minimum; else it is a maximum."""
    also: str = ""
    """An alternative condition that also holds the goal, in words: "or 20 ms more". Then pass *held*."""
    held: bool | None = None
    """Whether the goal is held. Default: whether *value* reaches *goal*, or None without a goal."""
    binds: bool = True
    """False if the goal was set for other machines, and is only for comparison."""

    def __post_init__(self) -> None:
        if self.held is None and self.goal is not None:
            reached = self.value >= self.goal if self.at_least else self.value <= self.goal
            # A comparison of NumPy numbers gives a NumPy bool.
            object.__setattr__(self, "held", bool(reached))

    @property
    def missed(self) -> bool:
        """Whether a goal that binds here is missed."""
        return self.binds and self.held is False

    @property
    def verdict(self) -> str:
        """The goal and whether it is held, to print after the value; empty without a goal."""
        if self.goal is None:
            return ""
        sign = ">=" if self.at_least else "<="
        outcome = "ok" if self.held else "MISSED" if self.binds else "below"
        return f"goal {sign} {self.goal:.4g}{self.also and f', {self.also}'}  {outcome}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds and small sizes, only to see that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to this file")


def finish(options: argparse.Namespace, results: Sequence[Result]) -> int:
    """Write *results* as JSON if `--json` is given; return 1 if `--check` is given and a goal is missed, else 0."""
    if options.json is not None:
        listed = [asdict(result) for result in results]
        options.json.write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(options.check and any(result.missed for result in results))
