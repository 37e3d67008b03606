"""Draws a report's charts as inline SVG: text stays text, and colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.cli.evaluation import Classified, Curve, Estimated
from predictor.errors import PredictorError
from predictor.manifest import Feature

__all__ = ["Charts"]

# Placeholder colours for matplotlib, and the page's CSS colours that replace them in the SVG.
_TEXT, _GRID, _INK, _PALE = "#010203", "#020304", "#030405", "#040506"
_SERIES = ("#030405", "#050607", "#060708", "#070809")
_NAMES = {
    _TEXT: "currentColor",
    _GRID: "var(--line)",
    _PALE: "var(--pale)",
    **dict(zip(_SERIES, ("var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)"), strict=True)),
}
_DASHES = ("-", "--", "-.", ":")
_DOTS = "#2f86c4"  # points are drawn as pixels, which cannot follow the theme; visible on white and on black
_WIDE, _SMALL = 3.6, 2.75  # inches; with them, text of 9 points is 10 to 16 pixels high on the page
_NAMED = 6  # most categories whose labels fit into a small chart
Floats = NDArray[np.float64]


class Charts:
    """Draws the charts of one page; each method returns an HTML `figure`."""

    def __init__(self) -> None:
        try:
            from matplotlib import rc_context
            from matplotlib.figure import Figure
        except ImportError as error:
            raise PredictorError(
                "charts need the 'report' extra: pip install 'lightgbm-predictor[report]'"
            ) from error
        self._figure, self._settings, self._drawn = Figure, rc_context, 0

    def bars(self, names: Sequence[str], values: Sequence[float], label: str) -> str:
        """Draw horizontal bars, the first on top."""

        def draw(axes: Any) -> None:
            axes.barh(range(len(names)), values, color=_INK)
            axes.locator_params(axis="x", nbins=4)
            axes.set_yticks(range(len(names)), [_short(name) for name in names])
            axes.invert_yaxis()
            axes.set_xlabel(label)

        return self._draw(draw, label + " of each feature", height=0.9 + 0.24 * len(names))

    def shares(self, feature: Feature, counts: NDArray[np.int64]) -> str:
        """Draw the share of these rows per bin beside that of the reference."""

        def draw(axes: Any) -> None:
            if feature.reference is None:
                return
            places = np.arange(len(counts))
            axes.bar(places - 0.2, feature.reference.shares, 0.4, color=_PALE)
            axes.bar(places + 0.2, counts / max(1, counts.sum()), 0.4, color=_INK)
            _label_categories(axes, feature, places)
            axes.set_title(_short(feature.name), fontsize=9)
            if feature.min is not None and feature.max is not None:
                axes.set_xlabel(f"{feature.min:.4g} .. {feature.max:.4g}")

        return self._draw(draw, f"share of rows per bin of {feature.name}", height=1.7, width=_SMALL)

    def roc(self, curves: Sequence[Curve]) -> str:
        """Draw the ROC curves: true positive rate against false positive rate."""

        def draw(axes: Any) -> None:
            for curve, style in zip(curves, self._styles(len(curves)), strict=True):
                axes.plot(
                    curve.fall_out, curve.recall, **style, label=f"{_short(curve.label)} {curve.area:.3f}"
                )
            axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
            axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC, with its area")
            self._legend(axes, len(curves))

        return self._draw(draw, "ROC curve of each class against the rest")

    def precision(self, curves: Sequence[Curve]) -> str:
        """Draw precision against recall."""

        def draw(axes: Any) -> None:
            for curve, style in zip(curves, self._styles(len(curves)), strict=True):
                name = f"{_short(curve.label)} {curve.average_precision:.3f}"
                axes.plot(curve.recall, curve.precision, **style, label=name)
            axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03), title="PR, with average precision")
            self._legend(axes, len(curves))

        return self._draw(draw, "precision and recall of each class against the rest")

    def calibration(self, counted: Classified) -> str:
        """Draw observed against predicted frequencies, with 95 % intervals."""

        def draw(axes: Any) -> None:
            axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
            for index, style in zip(counted.shown, self._styles(len(counted.shown)), strict=True):
                predicted, share, low, high, _ = counted.calibration(index).T
                name = _short(counted.classes[index])
                # As lists: of arrays with one element matplotlib asks what NumPy before 2.4 warns of.
                errors = (share - low).tolist(), (high - share).tolist()
                axes.errorbar(predicted, share, errors, fmt="o", **style, ms=4, label=name)
            axes.set(xlabel="mean probability", ylabel="observed frequency", title="Calibration")
            self._legend(axes, len(counted.shown))

        return self._draw(draw, "calibration: observed against predicted frequencies")

    def estimates(self, counted: Estimated) -> str:
        """Draw the mean label against the mean prediction, per tenth of the rows by prediction."""

        def draw(axes: Any) -> None:
            truth, predicted = counted.pairs.T
            parts = np.array_split(np.argsort(predicted, kind="stable"), min(10, len(predicted)))
            x = [float(predicted[part].mean()) for part in parts]
            axes.axline((x[0], x[0]), slope=1, color=_GRID, linewidth=1)
            reach = [1.96 * float(truth[part].std()) / len(part) ** 0.5 for part in parts]
            axes.errorbar(x, [truth[part].mean() for part in parts], reach, fmt="o-", color=_INK, ms=4)
            axes.set(xlabel="mean prediction per tenth of rows", ylabel="mean label", title="Calibration")

        return self._draw(draw, "calibration: labels against predictions")

    def swarm(self, names: Sequence[str], values: Floats, shares: Floats) -> str:
        """Draw SHAP contributions, one line per feature and one dot per row; a lighter dot is a larger value."""

        def draw(axes: Any) -> None:
            random = np.random.default_rng(0)
            for line in range(len(names)):
                x, v = shares[:, line], values[:, line]
                rank = np.argsort(np.argsort(np.nan_to_num(v, nan=-np.inf))) / max(1, len(v) - 1)
                jitter = random.uniform(-0.3, 0.3, len(x))
                axes.scatter(
                    x, line + jitter, c=rank, cmap="plasma", vmin=-0.15, vmax=1.15, s=4, rasterized=True
                )
            axes.axvline(0, color=_GRID, linewidth=1)
            axes.locator_params(axis="x", nbins=5)
            axes.set_yticks(range(len(names)), [_short(name) for name in names])
            axes.invert_yaxis()
            axes.set_xlabel("contribution to the raw score (SHAP)")

        return self._draw(draw, "contribution of each feature in each row", height=0.9 + 0.34 * len(names))

    def dependence(self, feature: Feature, values: Floats, shares: Floats) -> str:
        """Draw contribution against value; a category has its labels on the axis if there are few."""

        def draw(axes: Any) -> None:
            axes.scatter(values, shares, s=4, color=_DOTS, alpha=0.6, rasterized=True)
            axes.axhline(0, color=_GRID, linewidth=1)
            axes.locator_params(nbins=4)
            if feature.codes is not None:
                _label_categories(axes, feature, feature.codes)
                axes.set_xlim(min(feature.codes, default=0) - 0.5, max(feature.codes, default=0) + 0.5)
            axes.set(xlabel=_short(feature.name), ylabel="contribution")

        return self._draw(draw, f"contribution of {feature.name} by its value", height=1.9, width=_SMALL)

    @staticmethod
    def _styles(count: int) -> list[dict[str, Any]]:
        # Dashes differ too, for readers who do not see colours or print in grey.
        return [
            {"color": _SERIES[i % 4], "linestyle": _DASHES[i // 4 % 4 if count > 4 else i % 4]}
            for i in range(count)
        ]

    @staticmethod
    def _legend(axes: Any, count: int) -> None:
        if count <= 12:
            axes.legend(fontsize=8, frameon=False)

    def _draw(
        self, draw: Callable[[Any], None], caption: str, *, height: float = 2.8, width: float = _WIDE
    ) -> str:
        self._drawn += 1
        with self._settings({
            **dict.fromkeys(
                ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), _TEXT
            ),
            "axes.edgecolor": _GRID,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "none",
            "svg.hashsalt": str(self._drawn),  # ids differ between the charts of a page
            "font.size": 9,
            "axes.titlesize": 9,
            "text.parse_math": False,  # a feature may be called $x$
        }):  # fmt: skip
            figure = self._figure(figsize=(width, height), layout="constrained")
            draw(figure.add_subplot())
            file = io.StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(file, format="svg", transparent=True, dpi=160, metadata=nothing)
        text = file.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
        text = re.sub(r'<g id="[^"]*"', "<g", text)
        text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
        for placeholder, name in _NAMES.items():
            text = text.replace(placeholder, name)
        view = re.search(r'viewBox="[^"]*"', text)
        if view is None:
            raise RuntimeError("matplotlib wrote an SVG without a viewBox")
        body = text[text.index(">") + 1 :]
        return f'<figure><svg {view[0]} role="img" aria-label="{escape(caption)}">{body}</figure>'


def _label_categories(axes: Any, feature: Feature, places: Sequence[float] | NDArray[np.int64]) -> None:
    """Write the categories of *feature* at *places* on the x axis; nothing if there are too many or none."""
    labels = feature.categories or ()
    if 0 < len(labels) <= _NAMED:
        room = 36 // len(labels)  # characters
        axes.set_xticks(places, [_short(label, room) for label in labels])
    else:
        axes.set_xticks([])


def _short(name: object, most: int = 20) -> str:
    text = str(name)
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
