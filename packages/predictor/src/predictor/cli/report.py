"""Writes one self-contained HTML page about a model and a file of rows; charts are inline, nothing is fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.cli.charts import Charts
from predictor.cli.evaluation import Classified, Compared, Estimated, numbers_of, positions_of
from predictor.cli.ranking import Ranked
from predictor.cli.sampling import Sample
from predictor.drift import AnswerDrift, DriftMonitor
from predictor.errors import PredictorError, SchemaError, Unsupported
from predictor.manifest import Manifest
from predictor.model import Model

__all__ = ["Report"]

_SHOWN = 12  # most features with a chart, those of the largest gain
_DEPENDENCE = 4  # most features with a dependence plot
_CURVES = 12  # most classes with a curve, the most frequent ones
_CELLS = 20  # most classes for a readable confusion matrix
_EXPLAINED = 1_000  # rows of the random sample to explain: contributions cost 50 to 100 times a prediction
_DRIFTED = 0.25  # a stability index from which on, by a common rule, to act
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #c3c9d1; --pale: #9db4c8;
 --s0: #14639e; --s1: #b3460b; --s2: #1d7a3c; --s3: #7b3fa0; --tint: 20, 99, 158 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --paper: #14171b; --line: #4a525c; --pale: #5d7183;
 --s0: #6db6ee; --s1: #f0975f; --s2: #6fcf8d; --s3: #c79be6; --tint: 109, 182, 238 } }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --line: #999; --pale: #9db4c8;
 --s0: #14639e; --s1: #b3460b; --s2: #1d7a3c; --s3: #7b3fa0; --tint: 20, 99, 158 }
 figure, tr, .verdict { break-inside: avoid } h2, h3 { break-after: avoid } main { max-width: none !important } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: var(--ink); background: var(--paper) }
main { max-width: 66rem; margin: 0 auto; padding: 1rem }
h1, h2 { font-weight: 600; line-height: 1.25; overflow-wrap: anywhere } h2 { margin-top: 2rem }
.verdict { border-left: .3rem solid var(--s0); padding: .1rem 1rem; font-size: 1.1rem }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(min(13.5rem, 100%), 1fr)) }
.grid { margin: 1.2rem 0 }
figure { margin: 0; max-width: 30rem } svg { width: 100%; height: auto; overflow: visible }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.caption { font-weight: 600; margin: 1.2rem 0 .4rem; break-after: avoid }
td, th { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400 }
thead th { font-weight: 600 } td:first-child, th:first-child { text-align: left; overflow-wrap: break-word;
 min-width: 5rem; max-width: 16rem }
table.facts td, table.facts th { text-align: left }
@media (max-width: 40rem) { td, th { padding: .2rem .35rem; font-size: .85rem } }
p, td { overflow-wrap: break-word }
"""


class Report:
    """Counts rows block by block, in bounded memory, and writes the page at the end."""

    def __init__(
        self, model: Model, reference: Manifest | None, *, has_labels: bool, has_queries: bool = False
    ) -> None:
        """
        Args:
            model: The model to report on.
            reference: The manifest that drift is measured against, with the model's features; None: no drift.
            has_labels: Whether `add` will get labels.
            has_queries: Whether `add` will get queries too.

        Raises:
            PredictorError: matplotlib (the `report` extra) is missing.
        """
        self._charts, self._model, info = Charts(), model, model.info
        self._rows, self._sample = 0, Sample(_EXPLAINED)
        self._monitor = DriftMonitor(reference) if reference is not None else None
        self._compared = reference.features if reference is not None else model.features
        gains = [gain for _, gain in model.importances().values()]
        self._chosen = sorted(range(len(gains)), key=lambda index: -gains[index])[:_SHOWN]
        bins = (self._compared[index].reference for index in self._chosen)
        self._bins = [np.zeros(0 if found is None else len(found.shares), dtype=np.int64) for found in bins]
        self._classified = self._estimated = self._ranked = None
        if not has_labels:
            return
        if has_queries:
            self._ranked = Ranked()
        elif info.output == "value":
            self._estimated = Estimated()
        elif info.output != "raw":
            self._classified = Classified(info.classes or tuple(range(max(2, info.n_classes))))

    def add(self, rows: Any, labels: Sequence[Any] = (), queries: Sequence[Any] = ()) -> None:
        """
        Add *rows*, in any form that `Model.predict` takes, with true labels and queries if announced.

        Raises:
            SchemaError: A row or label does not fit; its row is counted from the first of *rows*.
        """
        matrix = self._model.encode(rows)
        answers = self._model.predict_encoded(matrix).reshape(len(matrix), -1)
        if self._monitor is not None:
            self._monitor.observe(rows, answers)
        self._sample.add(rows)
        self._rows += len(matrix)
        for counts, index in zip(self._bins, self._chosen, strict=True):
            self._count(counts, index, matrix[:, index])
        if self._classified is None and self._estimated is None and self._ranked is None:
            return
        not_finite = ~np.isfinite(answers).all(axis=1)
        if not_finite.any():
            raise SchemaError(
                "an answer is not finite",
                remedy="leave the row out of the file",
                row=int(not_finite.argmax()),
            )
        if self._classified is not None:
            self._classified.add(answers, positions_of(labels, self._classified.classes))
        elif self._estimated is not None:
            self._estimated.add(answers, numbers_of(labels))
        elif self._ranked is not None:
            self._ranked.add(answers[:, 0], numbers_of(labels), queries)

    def page(self) -> str:
        """
        Return the page.

        Raises:
            PredictorError: No row was added.
        """
        if not self._rows:
            raise PredictorError("a report needs at least one row")
        title = escape(f"{self._model.info.name} {self._model.info.version}")
        verdict = "".join(f"<p>{escape(sentence)}</p>" for sentence in self._verdict())
        parts = (self._facts(), self._quality(), self._influence(), self._features())
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
            f'<body><main><h1>{title}</h1><div class="verdict">{verdict}</div>{"".join(parts)}</main></body></html>\n'
        )

    def _verdict(self) -> Iterable[str]:
        if self._classified is not None:
            yield self._classified.verdict()
        elif self._estimated is not None:
            yield self._estimated.verdict()
        elif self._ranked is not None:
            yield self._ranked.verdict()
        else:
            yield "The quality of the answers was not measured: " + (
                "name the column of the true labels (--label), and for a ranking model that of the query (--query)."
            )
        if self._monitor is None:
            yield "Drift was not measured: there is no manifest to compare with. Pass --reference."
            return
        drift = self._monitor.report()
        moved = [d.feature for d in drift if d.psi is not None and d.psi >= _DRIFTED]
        if moved:
            more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
            yield (
                f"{len(moved)} of {len(drift)} features have another distribution than in training (stability index"
                f" {_DRIFTED} or more): {', '.join(moved[:5])}{more}."
            )
        else:
            yield f"No feature drifted: every stability index is below {_DRIFTED}."
        worst = max((d.psi for d in self._monitor.answers() if d.psi is not None), default=None)
        if worst is not None:
            same = "another distribution than" if worst >= _DRIFTED else "about the same distribution as"
            yield f"The answers have {same} in training: stability index {worst:.2g}."
        if self._rows < 1_000:
            yield "With fewer than 1,000 rows, a stability index says little: chance alone changes it much."

    def _facts(self) -> str:
        info, manifest = self._model.info, self._model.manifest
        facts: list[tuple[str, object]] = [
            ("rows in this report", f"{self._rows:,}"),
            ("SHA-256", info.sha256[:16] + "..."),
            ("engine", info.engine),
            ("objective", info.objective or "none: raw scores"),
            ("trees", info.n_trees),
            ("classes", ", ".join(map(str, info.classes)) or None),
        ]
        if manifest is not None:
            facts += list(manifest.provenance.items())
        page = "<h2>The model</h2>" + _table("Facts", ("fact", "value"), facts, style="facts")
        if manifest is not None and manifest.metrics:
            metrics = ((name, metric.model, metric.baseline) for name, metric in manifest.metrics.items())
            page += _table("Quality in training", ("metric", "model", "baseline"), metrics)
        return page

    def _quality(self) -> str:
        if self._classified is not None:
            return self._of_classes(self._classified)
        if self._estimated is not None:
            return (
                "<h2>Quality</h2>"
                + _losses(self._estimated.losses(), "the mean label")
                + _grid(self._charts.estimates(self._estimated))
                + "<p>Bars: 95 % interval of the mean.</p>"
            )
        if self._ranked is not None:
            model, chance = self._ranked.finish()
            lines = [("NDCG@10", f"{model:.4f}", f"{chance:.4f}")]
            return (
                "<h2>Quality</h2>"
                + _table("Larger is better", ("measure", "model", "random order"), lines)
                + f"<p>Mean over {self._ranked.queries:,} queries. {self._ranked.without:,} queries without a relevant"
                " row are not counted.</p>"
            )
        return ""

    def _of_classes(self, counted: Classified) -> str:
        frequent = sorted(counted.shown, key=lambda index: -int(counted.confusion[index].sum()))[:_CURVES]
        curves = [counted.curve(index) for index in sorted(frequent)]
        curves = [curve for curve in curves if not math.isnan(curve.area)]
        pictures = [self._charts.roc(curves), self._charts.precision(curves)] if curves else []
        if len(counted.shown) <= _CURVES:
            pictures.append(self._charts.calibration(counted))
        areas = ((c.label, f"{c.area:.4f}", f"{c.average_precision:.4f}", f"{c.share:.4f}") for c in curves)
        steps = (
            (counted.classes[index], *(f"{cell:.4f}" for cell in line[:4]), f"{int(line[4]):,}")
            for index in counted.shown[:_CURVES]
            for line in counted.calibration(index)
        )
        heads = ("class", "mean probability", "observed frequency", "95 % from", "to", "rows")
        return (
            "<h2>Quality</h2>"
            + _losses(counted.losses(), "class frequencies")
            + _grid(*pictures)
            + _table(
                "Each class against the rest; guessing gives ROC area 0.5, and the share as average precision",
                ("class", "ROC area", "average precision", "share of rows"),
                areas,
            )
            + self._confusion(counted)
            + _table("Calibration, with Wilson intervals", heads, steps)
        )

    @staticmethod
    def _confusion(counted: Classified) -> str:
        if len(counted.classes) > _CELLS:
            return f"<p>No confusion matrix: {len(counted.classes)} classes are more than {_CELLS}.</p>"
        lines = []
        for name, counts in zip(counted.classes, counted.confusion, strict=True):
            total = max(1, int(counts.sum()))
            cells = (
                f'<td style="background: rgba(var(--tint), {0.35 * n / total:.3f})">{n:,}</td>'
                for n in counts
            )
            lines.append(f'<tr><th scope="row">{escape(str(name))}</th>{"".join(cells)}</tr>')
        heads = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in counted.classes)
        return _scrolling(
            "Confusion: rows by true class, columns by the most probable one",
            f'<thead><tr><th scope="col">true</th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody>',
        )

    def _influence(self) -> str:
        names = list(self._model.info.features)
        ranked = sorted(self._model.importances().items(), key=lambda item: -item[1][1])[:_SHOWN]
        page = "<h2>Feature importance</h2>"
        gains = self._charts.bars(
            [name for name, _ in ranked], [gain for _, (_, gain) in ranked], "total gain of splits"
        )
        rows = self._sample.rows()
        try:
            explained = self._model.explain(rows)
        except Unsupported as error:
            return page + _grid(gains) + f"<p>{escape(str(error))}</p>"
        matrix = self._model.encode(rows)
        shares = explained.contributions
        several = shares.ndim == 3
        size = np.abs(shares).mean(axis=(0, 1) if several else 0)
        order = np.argsort(-size, kind="stable")[:_SHOWN]
        classes = self._model.info.classes or tuple(range(self._model.info.n_classes))
        # Of several outputs, the charts show the one with the largest contributions, and say so.
        output = int(np.abs(shares).mean(axis=(0, 2)).argmax()) if several else 0
        one = shares[:, output] if several else shares
        of = f" to the score of class {escape(str(classes[output]))}, the largest ones" if several else ""
        pictures = [
            gains,
            self._charts.bars([names[i] for i in order], size[order].tolist(), "mean |contribution| (SHAP)"),
            self._charts.swarm([names[i] for i in order], matrix[:, order], one[:, order]),
        ]
        dependence = (
            self._charts.dependence(self._model.features[i], matrix[:, i], one[:, i])
            for i in order[:_DEPENDENCE]
        )
        drawn = f"{len(rows):,} rows" + (
            "" if len(rows) == self._rows else f", a random sample of {self._rows:,}"
        )
        return (
            page
            + f"<p>SHAP contributions of {drawn}. Dots show contributions{of}: one dot per row, dark for a small value"
            " of the feature, light for a large one; the value of a category is its code.</p>"
            + _grid(*pictures)
            + "<h3>Contribution by value</h3>"
            + _grid(*dependence, style="grid small")
        )

    def _features(self) -> str:
        if self._monitor is None:
            return ""
        pictures = (
            self._charts.shares(self._compared[index], counts)
            for index, counts in zip(self._chosen, self._bins, strict=True)
            if counts.any()
        )
        counters = (
            (d.feature, _rounded(d.psi), *map("{:,}".format, (d.rows, d.nulls, d.below, d.above, d.unseen)))
            for d in sorted(self._monitor.report(), key=lambda d: -(d.psi or 0.0))
        )
        heads = ("feature", "stability index", "rows", "nulls", "below range", "above range", "unseen")
        return (
            "<h2>Drift</h2><p>Strong bars: these rows. Pale bars: the rows of the reference, by default"
            " the sample rows of the model's manifest, in tenths. A common rule is to investigate a stability index"
            " from 0.1 on, and to act from 0.25 on.</p>"
            + _grid(*pictures, style="grid small")
            + _table("All features, the largest drift first", heads, counters)
            + self._answers(self._monitor.answers())
        )

    @staticmethod
    def _answers(drifts: Sequence[AnswerDrift]) -> str:
        lines = (
            ("prediction" if d.output is None else d.output, f"{d.rows:,}", _rounded(d.psi)) for d in drifts
        )
        return _table("Answers", ("output", "rows", "stability index"), lines) if drifts else ""

    def _count(self, counts: NDArray[np.int64], index: int, column: NDArray[np.float64]) -> None:
        feature, seen = self._compared[index], column[~np.isnan(column)]
        if feature.reference is None:
            return
        if feature.codes is not None:
            counts += np.array([np.count_nonzero(seen == code) for code in feature.codes], dtype=np.int64)
        else:
            counts += np.bincount(np.searchsorted(feature.reference.edges, seen), minlength=len(counts))


def _rounded(number: float | None) -> str | None:
    return None if number is None else f"{number:.4f}"


def _losses(losses: Sequence[Compared], baseline: str) -> str:
    lines = ((loss.name, f"{loss.model:.5g}", f"{loss.baseline:.5g}") for loss in losses)
    return _table("Smaller is better", ("measure", "model", baseline), lines)


def _grid(*pictures: str, style: str = "grid") -> str:
    return f'<div class="{style}">{"".join(pictures)}</div>'


def _table(caption: str, heads: Sequence[str], lines: Iterable[Sequence[object]], *, style: str = "") -> str:
    def line(cells: Sequence[object]) -> str:
        first, *rest = ("-" if cell is None else escape(str(cell)) for cell in cells)
        return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{text}</td>" for text in rest)}</tr>'

    titles = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(map(line, lines))
    return _scrolling(caption, f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>", style=style)


def _scrolling(caption: str, content: str, *, style: str = "") -> str:
    """Return a table that scrolls sideways on a narrow page, below a caption that does not scroll."""
    # tabindex: a scrolling element must be reachable by keyboard (WCAG 2.1.1).
    return (
        f'<p class="caption">{escape(caption)}</p><div class="wide" tabindex="0" role="group"'
        f' aria-label="{escape(caption)}"><table class="{style}" aria-label="{escape(caption)}">{content}</table></div>'
    )
