"""
Writes results into a Markdown page: a chart, its caption and a table, between two comments.

    <!-- figures of middleware -->
    <!-- end of figures -->

If a benchmark has no kept results, its place stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from harness.figures import FOLDER, Measurements

__all__ = ["PAGE", "with_figures"]

PAGE = Path(__file__).parents[1] / "README.md"
_PLACE = re.compile(r"(<!-- figures of (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def with_figures(text: str, kept: Mapping[str, Measurements]) -> str:
    """Return *text*, a page, with the places of all benchmarks in *kept* filled."""

    def filled(place: re.Match[str]) -> str:
        found = kept.get(place[2])
        return place[0] if found is None else f"{place[1]}\n{_section(found)}\n\n{place[3]}"

    return _PLACE.sub(filled, text)


def _section(found: Measurements) -> str:
    name = found.benchmark
    rows = ["| | measured | | goal | |", "| --- | --- | --- | --- | --- |"]
    for figure in found.figures():
        verdict = figure.verdict if figure.verdict in {"", "held"} else f"**{figure.verdict}**"
        unit = figure.last.unit
        rows.append(f"| {figure.last.name} | {figure.spread} | {unit} | {figure.goal} | {verdict} |")
    alternative = "The table below as a picture: each figure with its spread, and its goal as an upright line"
    return "\n".join(
        [
            f"![{alternative}]({FOLDER.name}/{name}.svg)",
            "",
            f"`{found.command}`: {found.circumstances}; {found.machine}. [The data]({FOLDER.name}/{name}.json).",
            "",
            *rows,
        ]
    )
