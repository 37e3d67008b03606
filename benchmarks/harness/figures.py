"""The kept results of a benchmark: its runs on one machine, and for each result the summary over all runs."""

from __future__ import annotations

import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.results import Result

__all__ = ["FOLDER", "Figure", "Machine", "Measurements", "Run", "number"]

FOLDER = Path(__file__).parents[1] / "figures"


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement."""

    processor: str
    cores: int
    system: str
    python: str

    @classmethod
    def here(cls) -> Machine:
        """Describe the machine that this runs on."""
        info, processor = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
        if info.exists():
            named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
            processor = named[0].partition(":")[2].strip() if named else processor
        arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
        optimised = "" if "--enable-optimizations" in arguments else ", built without optimisation"
        return cls(
            processor=processor,
            cores=os.cpu_count() or 1,
            system=f"{platform.system()} {platform.machine()}",
            python=f"{platform.python_implementation()} {platform.python_version()}{optimised}",
        )

    def __str__(self) -> str:
        return f"{self.cores} cores of {self.processor}, {self.system}, {self.python}"


@dataclass(frozen=True)
class Run:
    """One run; *load* is the load average of the minute before it."""

    measured: str
    seconds: int
    load: float
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Figure:
    """One result over all runs."""

    results: tuple[Result, ...]

    @property
    def last(self) -> Result:
        """The result of the last run; charts use its goal."""
        return self.results[-1]

    @property
    def values(self) -> list[float]:
        """The values of all runs, the lowest first."""
        return sorted(result.value for result in self.results)

    @property
    def middle(self) -> float:
        """The median of the runs."""
        return median(self.values)

    @property
    def spread(self) -> str:
        """The lowest and the highest value, or one number if they are equal."""
        ends = dict.fromkeys(number(value) for value in (self.values[0], self.values[-1]))
        return " - ".join(ends)

    @property
    def goal(self) -> str:
        """The goal in words; empty without one."""
        last = self.last
        if last.goal is None:
            return ""
        sign = "\N{GREATER-THAN OR EQUAL TO}" if last.at_least else "\N{LESS-THAN OR EQUAL TO}"
        return f"{sign} {number(last.goal)}{last.also and f', {last.also}'}"

    @property
    def verdict(self) -> str:
        """Whether the goal was met in all runs, or in how many it was missed; empty without a goal."""
        if self.last.goal is None:
            return ""
        missed = sum(result.held is False for result in self.results)
        word = "missed" if self.last.binds else "below"
        if not missed:
            return "held"
        return word if missed == len(self.results) else f"{word} in {missed} of {len(self.results)} runs"


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """All kept runs of one benchmark."""

    benchmark: str
    command: str
    machine: Machine
    runs: tuple[Run, ...]

    @classmethod
    def read(cls, path: Path) -> Measurements:
        """
        Read a file of `write`.

        Raises:
            OSError: There is no such file.
        """
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        runs = tuple(
            Run(**run | {"results": tuple(Result(**result) for result in run["results"])})
            for run in found["runs"]
        )
        return cls(**found | {"machine": Machine(**found["machine"]), "runs": runs})

    def write(self, path: Path) -> None:
        """Write JSON with one value per line, so that a diff shows each changed value."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def figures(self) -> Iterator[Figure]:
        """Yield the results in the order of the last run, each with its values in all runs."""
        for last in self.runs[-1].results:
            same = [
                result
                for run in self.runs
                for result in run.results
                if (result.name, result.unit) == (last.name, last.unit)
            ]
            yield Figure(tuple(same))

    @property
    def circumstances(self) -> str:
        """The number of runs, their dates, and the load average before them."""
        count, loads = len(self.runs), sorted(run.load for run in self.runs)
        days = sorted({run.measured for run in self.runs})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        load = number(loads[0]) if loads[0] == loads[-1] else f"{number(loads[0])} to {number(loads[-1])}"
        return f"{count} run{'s' * (count > 1)}, {when}, load average before them {load}"


def number(value: float) -> str:
    """Format *value* with three significant digits; from 1,000 on as a whole number with commas."""
    if value == 0 or abs(value) >= 1_000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1g}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
