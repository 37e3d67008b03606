"""
Draws the results of one benchmark as SVG: one row per result, with its spread, and its goal as a line.

Text stays text, and colours follow the reader's colour scheme, light or dark. The same results give the same bytes, on
every version of Python: heights are added by `math.fsum`, because `sum` rounds floats otherwise since Python 3.12.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import textwrap
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from harness.figures import Figure, Measurements, number

__all__ = ["draw"]

WIDTH, LABEL, CAPTION = 4.7, 62, 76  # inches; characters per line of a row, and of the caption
# Height in inches of a line of text, a heading, a row's chart, an axis.
LINE, HEAD, ROW, AXIS = 0.18, 0.34, 0.2, 0.3
# Placeholder colours for matplotlib, and the colours that replace them in the light and in the dark scheme.
TEXT, MUTED, GRID, HELD, MISSED, GROUND = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
COLOURS = {
    TEXT: ("text", "#1f2933", "#e6e9ef"),
    MUTED: ("muted", "#475569", "#aab4c3"),
    GRID: ("grid", "#d3dae6", "#3c4656"),
    HELD: ("held", "#1d5fb4", "#7db4ff"),
    MISSED: ("missed", "#b3261e", "#ff9d94"),
    GROUND: ("ground", "#f8fafc", "#1b1f27"),
}
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "figures",
    "text.parse_math": False,
    "font.size": 9,
    "axes.linewidth": 0.6,
    "xtick.major.size": 3,
    "xtick.color": MUTED,
}


def draw(found: Measurements) -> str:
    """Return the chart of *found*; results of one unit share an axis."""
    groups = [
        (unit, list(figures))
        for unit, figures in itertools.groupby(
            sorted(found.figures(), key=_order(found)), key=lambda figure: figure.last.unit
        )
    ]
    caption = [
        line
        for text in (found.command, f"{found.circumstances}; {found.machine}", _legend(found))
        for line in textwrap.wrap(text, CAPTION)
    ]
    height = math.fsum(_height(figures) for _, figures in groups) + LINE * (len(caption) + 1.4)
    with rc_context(SETTINGS):
        canvas = Canvas(figsize=(WIDTH, height))
        top = height - 0.08
        for unit, figures in groups:
            _group(canvas, height, top, unit, figures)
            top -= _height(figures)
        for line in caption:
            top -= LINE
            canvas.text(0.03, top / height, line, color=MUTED, fontsize=7.5)
        return _to_svg(canvas, found)


def _order(found: Measurements) -> Any:
    """Return a sort key that groups results by unit, in the order in which the units first occur."""
    units = list(dict.fromkeys(figure.last.unit for figure in found.figures()))
    return lambda figure: units.index(figure.last.unit)


def _legend(found: Measurements) -> str:
    spread = "; line: lowest to highest run, dot: median" if len(found.runs) > 1 else ""
    return f"upright line: the goal; cross: goal missed{spread}"


def _value_label(figure: Figure) -> str:
    words = " ".join(filter(None, (figure.goal.partition(",")[0], figure.verdict)))
    return f"{figure.spread}{words and f'  ({words})'}"


def _names(figure: Figure) -> list[str]:
    """Return the lines of the result's name, short enough to leave room for its value and verdict."""
    name = f"{figure.last.name} (goal {figure.goal})" if figure.last.also else figure.last.name
    return textwrap.wrap(name, max(28, LABEL - len(_value_label(figure))))


def _height(figures: list[Figure]) -> float:
    """Return the height of a group in inches."""
    return HEAD + AXIS + math.fsum(LINE * len(_names(figure)) + ROW for figure in figures)


def _group(canvas: Canvas, height: float, top: float, unit: str, figures: list[Figure]) -> None:
    canvas.text(0.03, (top - LINE) / height, unit, color=TEXT, fontsize=9, fontweight="bold")
    inside = _height(figures) - HEAD - AXIS
    axes = canvas.add_axes((0.05, (top - HEAD - inside) / height, 0.9, inside / height))
    _scale(axes, figures)
    axes.set(ylim=(-inside, 0), facecolor="none", yticks=[])
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(axis="x", color=GRID, labelsize=8)
    line = 0.0
    for figure in figures:
        for text in _names(figure):
            line -= LINE
            axes.text(-0.02, line + 0.04, text, transform=axes.get_yaxis_transform(), color=TEXT)
        _row(axes, line, figure)
        line -= ROW


def _row(axes: Any, line: float, figure: Figure) -> None:
    bad = figure.verdict not in {"", "held"}
    colour = MUTED if not figure.goal else HELD if not bad else MISSED if figure.last.binds else MUTED
    axes.text(
        1.02,
        line + 0.04,
        _value_label(figure),
        transform=axes.get_yaxis_transform(),
        ha="right",
        color=colour,
        fontweight="bold" if bad and figure.last.binds else "normal",
    )
    y = line - ROW / 2 + 0.02
    axes.axhline(y, color=GRID, linewidth=0.6, zorder=0)
    if figure.last.goal is not None:
        axes.plot(
            [figure.last.goal] * 2, [y - 0.07, y + 0.07], color=TEXT, linewidth=1.6, solid_capstyle="butt"
        )
    axes.plot(
        [figure.values[0], figure.values[-1]], [y, y], color=colour, linewidth=3, solid_capstyle="round"
    )
    axes.plot(
        [figure.middle],
        [y],
        marker="X" if bad else "o",
        markersize=6.5 if bad else 5.5,
        color=colour,
        markeredgecolor=GROUND,
        markeredgewidth=0.6,
        clip_on=False,
    )


def _scale(axes: Any, figures: list[Figure]) -> None:
    """Set a linear axis from 0, or a logarithmic one if the values differ by more than a factor of 12."""
    shown = [value for figure in figures for value in figure.values]
    shown += [figure.last.goal for figure in figures if figure.last.goal is not None]
    low, high = min(shown), max(shown)
    if low > 0 and high / low > 12:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high / low < 200 else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(min(0.0, low * 1.05), high * 1.06 or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _to_svg(canvas: Canvas, found: Measurements) -> str:
    """Return the SVG without metadata and ids that change between drawings, and with colours by scheme."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"]*?)([\d.]+)px [^;\"]*", r"font: \1\2px system-ui, sans-serif", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for placeholder, (name, _, _) in COLOURS.items():
        text = text.replace(placeholder, f"var(--{name})")
    schemes = [
        ";".join(f"--{name}:{colours[scheme]}" for name, *colours in COLOURS.values()) for scheme in (0, 1)
    ]
    head = (
        f"<title>{escape(found.command)}</title>"
        f"<style>:root{{{schemes[0]}}}@media(prefers-color-scheme:dark){{:root{{{schemes[1]}}}}}</style>"
        '<rect width="100%" height="100%" rx="8" style="fill:var(--ground)"/>'
    )
    begin = text.index(">") + 1
    return "\n".join(line.rstrip() for line in (text[:begin] + head + text[begin:]).splitlines()) + "\n"
