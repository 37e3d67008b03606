"""Draws the charts of `ml-api report` as SVG; imports matplotlib only when a chart is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ml_api.training.evaluation import Bin, Fold
from predictor import Feature

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "calibration",
    "class_balance",
    "confusion",
    "feature_ranges",
    "importances",
    "walk_forward",
]

# The palette of Okabe and Ito, whose colours colour-blind readers can distinguish.
_COLOURS: Final = {"SELL": "#d55e00", "HOLD": "#7f7f7f", "BUY": "#0072b2"}
_MODEL, _BASELINE = "#0072b2", "#7f7f7f"
_STYLE: Any = {  # Any, because matplotlib's type for settings is a Literal of all names
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ml-api",  # equal figures give equal bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@contextmanager
def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> Iterator[tuple[list[Axes], Callable[[], str]]]:
    """Yield axes, and a function that returns the finished figure as SVG; sizes are in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes: list[Axes] = np.ravel(figure.subplots(rows, columns)).tolist()

        def svg() -> str:
            out = io.StringIO()
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
            return out.getvalue()

        yield axes, svg


def class_balance(counts: Mapping[str, int]) -> str:
    """Draw bars of the number of training samples per class."""
    total = sum(counts.values())
    with _figure(6.5, 1.6) as ((axes,), svg):
        bars = axes.barh(list(counts), list(counts.values()), color=[_COLOURS[name] for name in counts])
        axes.bar_label(bars, [f"{count} ({count / total:.0%})" for count in counts.values()], padding=4)
        axes.set_xlim(0, 1.2 * max(counts.values()))
        axes.set_xlabel("samples")
        axes.invert_yaxis()
        return svg()


def walk_forward(folds: Sequence[Fold]) -> str:
    """Draw each metric per test period, of the model and of the baseline."""
    years = [f"{fold['test_from'][:4]}–{fold['test_to'][2:4]}" for fold in folds]
    measures = (
        ("log loss (lower is better)", "log_loss"),
        ("balanced accuracy", "balanced_accuracy"),
        ("direction accuracy", "direction_accuracy"),
    )
    with _figure(10, 3.1, 1, 3) as (panels, svg):
        for axes, (title, name) in zip(panels, measures, strict=True):
            model, baseline = ([float(fold[who][name]) for fold in folds] for who in ("model", "baseline"))  # type: ignore[literal-required]
            axes.vlines(years, model, baseline, color="#cccccc")
            axes.plot(years, model, "o", color=_MODEL, label="model")
            axes.plot(
                years, baseline, "_", color=_BASELINE, markersize=12, markeredgewidth=2, label="baseline"
            )
            axes.set_title(title, loc="left")
            axes.tick_params("x", rotation=45)
            axes.grid(axis="y", color="#eeeeee")
        panels[0].legend(frameon=False)
        return svg()


def calibration(classes: Sequence[str], columns: Sequence[Sequence[Bin]]) -> str:
    """Draw observed against predicted frequency per class; on the diagonal, probabilities are calibrated."""
    points = [value for column in columns for one in column for value in (one["predicted"], one["observed"])]
    low, high = min(points) - 0.02, max(points) + 0.02
    with _figure(10, 3.3, 1, len(columns)) as (panels, svg):
        for axes, name, column in zip(panels, classes, columns, strict=True):
            axes.plot([low, high], [low, high], color="#cccccc")
            predicted, observed = ([one[key] for one in column] for key in ("predicted", "observed"))
            # Two standard errors for independent samples. These samples overlap, so the true errors are larger.
            errors = [2 * (one["observed"] * (1 - one["observed"]) / one["count"]) ** 0.5 for one in column]
            axes.errorbar(predicted, observed, errors, fmt="o", color=_COLOURS[name], markersize=4)
            axes.set(xlim=(low, high), ylim=(low, high), title=name, xlabel="predicted probability")
            axes.set_aspect("equal")
        panels[0].set_ylabel("observed frequency")
        return svg()


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Draw the confusion matrix: rows are true classes, columns predicted ones; shares are per row."""
    table = np.asarray(counts)
    shares = table / table.sum(axis=1, keepdims=True)
    ticks = range(len(classes))
    with _figure(4.4, 3.4) as ((axes,), svg):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for truth in ticks:
            for answer in ticks:
                share = shares[truth, answer]
                text = f"{table[truth, answer]}\n{share:.0%}"
                colour = "white" if share > 0.55 else "black"
                axes.text(answer, truth, text, ha="center", va="center", color=colour)
        axes.set_xticks(ticks, classes)
        axes.set_yticks(ticks, classes)
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return svg()


def importances(shares: Mapping[str, float]) -> str:
    """Draw bars of each feature's share of the total gain of all splits."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    with _figure(6.5, 3.2) as ((axes,), svg):
        bars = axes.barh([name for name, _ in ordered], [share for _, share in ordered], color=_MODEL)
        axes.bar_label(bars, [f"{share:.0%}" for _, share in ordered], padding=4)
        axes.set_xlabel("share of the gain of all splits")
        return svg()


def feature_ranges(features: Sequence[Feature]) -> str:
    """Draw the training range and deciles of each feature; the box is the middle 80 %."""
    shown = [feature for feature in features if feature.reference is not None and feature.reference.edges]
    with _figure(10, 0.55 * len(shown) + 0.4, len(shown)) as (panels, svg):
        for axes, feature in zip(panels, shown, strict=True):
            edges = feature.reference.edges if feature.reference is not None else ()
            ends = [value for value in (feature.min, feature.max) if value is not None]
            if _spreads(min(ends), max(ends), edges[0], edges[-1]):
                axes.set_xscale("symlog", linthresh=max(map(abs, edges)) / 100)
            axes.hlines(0, min(ends), max(ends), color="#cccccc")
            axes.hlines(0, edges[0], edges[-1], color=_MODEL, linewidth=8, alpha=0.25)
            axes.plot(edges, [0] * len(edges), "|", color=_MODEL, markersize=8)
            axes.plot(ends, [0] * len(ends), "|", color="black", markersize=10)
            for value, side in zip((min(ends), max(ends)), ("right", "left"), strict=True):
                axes.annotate(
                    f"{value:.4g}",
                    (value, 0),
                    (6 if side == "left" else -6, 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    fontsize=8,
                )
            axes.set_ylabel(feature.name, rotation=0, ha="right", va="center")
            axes.set_yticks([])
            axes.set_xticks([])
            axes.minorticks_off()
            axes.margins(x=0.12)
            axes.spines[:].set_visible(False)
        return svg()


def _spreads(low: float, high: float, first: float, last: float) -> bool:
    """Whether a range, or its middle 80 %, is too skewed for a linear scale."""
    return high - low > 10 * (last - first) or abs(last) > 20 * abs(first)
