"""
`ml-api report`: one HTML page with charts about the quality of the trading model.

Everything comes from the model's manifest, so no training data are needed. The page is one file with inline charts.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ml_api import Unusable
from ml_api.serving.registry import BUNDLED_MODEL
from ml_api.training.evaluation import Evaluation
from ml_api.training.verdict import verdict
from predictor import Manifest, manifest_path

__all__ = ["ReportUnavailable", "render", "write_report"]


class ReportUnavailable(Unusable):
    """The page cannot be made; the message says what is missing, and how to get it."""


class _Provenance(TypedDict):
    """The part of the manifest's provenance that the page shows; `ml-api train` writes it."""

    data: list[dict[str, str | int]]
    samples: int
    class_counts: list[int]
    label: str
    parameters: dict[str, JsonValue]
    importance_gain: dict[str, float]
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class _Picture:
    title: str
    reading: str
    svg: str


def write_report(out: Path, model: str | os.PathLike[str] = BUNDLED_MODEL) -> None:
    """
    Write the page about *model*, by default the one in the package, to *out*.

    Raises:
        ReportUnavailable: matplotlib is not installed, or the manifest was not made by `ml-api train`.
        predictor.ManifestError: There is no readable manifest beside *model*.
    """
    page = render(Manifest.read(manifest_path(model)))
    out.write_text(page, encoding="utf-8")


def render(manifest: Manifest) -> str:
    """
    Return the page; equal manifests give equal pages.

    Raises:
        ReportUnavailable: As `write_report`.
    """
    try:
        provenance = TypeAdapter(_Provenance).validate_python(dict(manifest.provenance))
    except ValidationError as error:
        first = ".".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"]))
        raise ReportUnavailable(
            f"the manifest of {manifest.name} has no usable {first!r} in its provenance; `ml-api train` writes it"
        ) from None
    try:
        pictures = _draw(manifest, provenance)
    except ImportError as error:
        raise ReportUnavailable(
            f"the charts need the package {error.name}; install ml-api[report]"
        ) from error
    title = f"Model {manifest.name} {manifest.version}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_CSS}</style>\n</head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n{_summary(manifest, provenance)}\n{_contents(pictures)}\n"
        + "\n".join(map(_figure, pictures))
        + f"\n{_making(manifest, provenance)}\n</body>\n</html>\n"
    )


def _draw(manifest: Manifest, provenance: _Provenance) -> list[_Picture]:
    from ml_api.training import charts

    classes = [str(name) for name in manifest.classes]
    found = provenance["evaluation"]
    return [
        _Picture(
            "Walk-forward figures",
            "Each period was predicted by a model that was trained on earlier bars only. Dots are the model, bars the "
            "baseline: the class frequencies of the same training years. Direction accuracy counts only samples whose "
            "true class is SELL or BUY, and whether the more probable of these two was right.",
            charts.walk_forward(found.folds),
        ),
        _Picture(
            "Calibration",
            "Test samples in tenths by predicted probability. On the line, probabilities are calibrated. Whiskers are "
            "two standard errors; the true errors are larger, because neighbouring samples overlap.",
            charts.calibration(classes, found.calibration),
        ),
        _Picture(
            "Confusion",
            "All test samples; shares are of each true class. A model without skill has three equal rows.",
            charts.confusion(classes, found.confusion),
        ),
        _Picture(
            "Class balance",
            "Training samples per class. The class of a sample: " + provenance["label"] + ".",
            charts.class_balance(dict(zip(classes, provenance["class_counts"], strict=True))),
        ),
        _Picture(
            "Importances",
            "How much the splits on each feature reduced the training loss. It shows what the model uses, not that "
            "this is useful.",
            charts.importances(provenance["importance_gain"]),
        ),
        _Picture(
            "Feature ranges",
            "Training range (black marks, with values), deciles (blue marks) and the middle 80 % (box). The scale is "
            "linear, or logarithmic away from zero if the range is wide. The service's metrics count values outside "
            "the range. Training windows were rescaled to prices between 0.1 and a million, so averages and MACD cover "
            "all of these levels.",
            charts.feature_ranges(manifest.features),
        ),
    ]


def _summary(manifest: Manifest, provenance: _Provenance) -> str:
    rows = [
        [
            name.replace("_", " "),
            f"{metric.model:.4f}",
            "" if metric.baseline is None else f"{metric.baseline:.4f}",
        ]
        for name, metric in manifest.metrics.items()
    ]
    tested = sum(fold["tested"] for fold in provenance["evaluation"].folds)
    return (
        f"<p><strong>{escape(verdict(manifest.metrics))}</strong></p>\n"
        f"<p>{tested} out-of-sample test samples, walk-forward. A lower log loss is better; for the other metrics, "
        "higher is better.</p>\n" + _table(["measure", "model", "no-skill baseline"], rows)
    )


def _making(manifest: Manifest, provenance: _Provenance) -> str:
    data = [
        [str(one[key]) for key in ("series", "from", "to", "bars", "package", "version")]
        for one in provenance["data"]
    ]
    parameters = [[name, str(value)] for name, value in provenance["parameters"].items()]
    return (
        f"<h2>How it was made</h2>\n<p>{provenance['samples']} samples, {manifest.n_trees} trees, LightGBM "
        f"{escape(manifest.lightgbm)}, SHA-256 <code>{manifest.sha256}</code>.</p>\n"
        + _table(["series", "from", "to", "bars", "package", "version"], data)
        + _table(["parameter", "value"], parameters)
    )


def _contents(pictures: Sequence[_Picture]) -> str:
    links = " · ".join(f'<a href="#{_anchor(picture)}">{escape(picture.title)}</a>' for picture in pictures)
    return f"<nav>{links}</nav>"


def _figure(picture: _Picture) -> str:
    # As a separate image, so that the ids of one SVG do not collide with those of another.
    source = base64.b64encode(picture.svg.encode()).decode()
    return (
        f'<figure id="{_anchor(picture)}">\n<h2>{escape(picture.title)}</h2>\n'
        f'<img alt="{escape(picture.title)}" src="data:image/svg+xml;base64,{source}">\n'
        f"<figcaption>{escape(picture.reading)}</figcaption>\n</figure>"
    )


def _anchor(picture: _Picture) -> str:
    return picture.title.lower().replace(" ", "-")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>\n"


_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
h1, h2 { line-height: 1.2 }
h2 { margin: 2.5rem 0 .5rem }
figure { margin: 0 }
figcaption { max-width: 46rem; color: #555 }
img { max-width: 100% }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem 1.2rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd }
td { font-variant-numeric: tabular-nums }
code { overflow-wrap: anywhere }
"""
