"""One self-contained HTML page about a model and a file of rows; pictures are inline, nothing is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from predictor.drift import DriftMonitor, FeatureDrift
from predictor.errors import PredictorError, SchemaError
from predictor.manifest import Feature
from predictor.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration", "render_report"]

_SHOWN = 16  # features with a picture, by gain
_BINS = 10
_INK, _PALE = "#1f4e79", "#c9d6e3"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { font-weight: 600 } img { max-width: 100% } table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left } .wide { overflow-x: auto }
"""


def render_report(model: Model, rows: Sequence[Any], labels: Sequence[Any] | None) -> str:
    """
    Return the page for *rows* (n >= 1) and, where given, their true *labels*.

    Raises:
        PredictorError: matplotlib (the `report` extra) is missing, or a row or label does not fit.
    """
    if not rows:
        raise PredictorError("a report needs at least one row")
    matrix = model.encode(rows)
    parts = [_facts(model, len(rows)), _importances(model)]
    if model.manifest is not None:
        monitor = DriftMonitor(model.manifest)
        monitor.observe(rows)
        parts.append(_ranges(model, matrix, monitor.report()))
    if labels is not None:
        parts.append(_calibration(model, matrix, labels))
    title = escape(f"{model.info.name} {model.info.version}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )


def calibration(
    probability: NDArray[np.float64], happened: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """
    Return per occupied tenth of the probability scale: mean probability, observed share, and rows.

    Args:
        probability: float64 [n] in [0, 1].
        happened: bool [n].
    """
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    used = counts > 0
    mean = np.bincount(bins, weights=probability, minlength=_BINS)[used] / counts[used]
    share = np.bincount(bins, weights=happened, minlength=_BINS)[used] / counts[used]
    return mean, share, counts[used]


def _facts(model: Model, n_rows: int) -> str:
    info = model.info
    facts: list[tuple[str, object]] = [
        ("SHA-256", info.sha256),
        ("engine", info.engine),
        ("objective", info.objective or "none: raw scores"),
        ("trees", info.n_trees),
        ("classes", ", ".join(map(str, info.classes)) or "-"),
        ("rows in this report", n_rows),
    ]
    if model.manifest is not None:
        facts += [(key, value) for key, value in model.manifest.provenance.items()]
    page = _table(("fact", "value"), facts)
    if model.manifest is not None and model.manifest.metrics:
        metrics = ((name, metric.model, metric.baseline) for name, metric in model.manifest.metrics.items())
        page += "<h2>Quality when it was made</h2>" + _table(("metric", "model", "baseline"), metrics)
    return page


def _importances(model: Model) -> str:
    ranked = sorted(model.importances().items(), key=lambda item: -item[1][1])[:_SHOWN]
    figure = _figure(height=0.6 + 0.28 * len(ranked))
    axes = figure.add_subplot()
    names, gains = [name for name, _ in ranked], [gain for _, (_, gain) in ranked]
    axes.barh(range(len(names)), gains, color=_INK)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("total gain of splits")
    return "<h2>Importances</h2>" + _picture(figure, "importance of each feature, by total gain")


def _ranges(model: Model, matrix: NDArray[np.float64], drift: Sequence[FeatureDrift]) -> str:
    gains = [gain for _, gain in model.importances().values()]
    chosen = sorted(sorted(range(len(gains)), key=lambda index: -gains[index])[:_SHOWN])
    lines = -(-len(chosen) // 4)
    figure = _figure(height=1.9 * lines)
    for place, index in enumerate(chosen, 1):
        _bars(figure.add_subplot(lines, 4, place), model.features[index], matrix[:, index])
    counters = (
        (d.feature, d.nulls, d.below, d.above, d.unseen, None if d.psi is None else round(d.psi, 4))
        for d in drift
    )
    heads = ("feature", "nulls", "below range", "above range", "unseen", "stability index")
    return (
        "<h2>Features: these rows (dark) against the rows the model was made with (pale)</h2>"
        + _picture(figure, "share of rows per bin, per feature")
        + _table(heads, counters)
    )


def _bars(axes: Any, feature: Feature, column: NDArray[np.float64]) -> None:
    axes.set_title(feature.name, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(labelsize=6)
    reference, seen = feature.reference, column[~np.isnan(column)]
    if reference is None or not len(seen):
        return
    if feature.codes is not None:
        counts = np.array([np.count_nonzero(seen == code) for code in feature.codes])
    else:
        counts = np.bincount(np.searchsorted(reference.edges, seen), minlength=len(reference.shares))
        axes.set_xlabel(f"{feature.min:.4g} .. {feature.max:.4g}", fontsize=6)
    places = np.arange(len(counts))
    axes.bar(places - 0.2, reference.shares, 0.4, color=_PALE)
    axes.bar(places + 0.2, counts / max(1, counts.sum()), 0.4, color=_INK)


def _calibration(model: Model, matrix: NDArray[np.float64], labels: Sequence[Any]) -> str:
    answers = model.predict_encoded(matrix).reshape(len(matrix), -1)
    figure = _figure(height=4.2)
    axes = figure.add_subplot()
    if model.info.output in ("value", "raw"):
        try:
            truth = np.array([float(label) for label in labels])
        except (TypeError, ValueError) as error:
            raise SchemaError("labels of a regression must be numbers") from error
        order = np.array_split(np.argsort(answers[:, 0], kind="stable"), min(_BINS, len(truth)))
        axes.plot(
            [answers[part, 0].mean() for part in order],
            [truth[part].mean() for part in order],
            "o-",
            color=_INK,
        )
        axes.set(xlabel="mean prediction per tenth of rows", ylabel="mean of what happened")
    else:
        for name, column, happened in _outcomes(model, answers, labels):
            mean, share, _ = calibration(column, happened)
            axes.plot(mean, share, "o-", label=str(name))
        axes.plot([0, 1], [0, 1], color=_PALE, linewidth=1)
        axes.set(xlabel="mean probability", ylabel="share that happened", xlim=(0, 1), ylim=(0, 1))
        axes.legend()
    return "<h2>Calibration</h2>" + _picture(figure, "calibration: what was said against what happened")


def _outcomes(
    model: Model, answers: NDArray[np.float64], labels: Sequence[Any]
) -> Iterable[tuple[Any, NDArray[np.float64], NDArray[np.bool_]]]:
    classes = model.info.classes or tuple(range(max(2, model.info.n_classes)))
    texts = np.array([str(label) for label in labels])
    if unknown := set(texts) - set(map(str, classes)):
        raise SchemaError(f"label {min(unknown)[:40]!r} is no class of this model")
    # A binary model has one column, the probability of its second class.
    columns = ((classes[1], 0),) if answers.shape[1] == 1 else tuple((c, i) for i, c in enumerate(classes))
    return [(name, answers[:, index], texts == str(name)) for name, index in columns]


def _table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    def line(cells: Iterable[object], tag: str) -> str:
        texts = ("-" if cell is None else escape(str(cell)) for cell in cells)
        return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"

    body = "".join(line(cells, "td") for cells in lines)
    return f'<div class="wide"><table>{line(heads, "th")}{body}</table></div>'


def _figure(*, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PredictorError(
            "pictures need the 'report' extra: pip install 'lightgbm-predictor[report]'"
        ) from error
    return Figure(figsize=(9, max(height, 2.0)), layout="constrained")


def _picture(figure: Figure, caption: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
