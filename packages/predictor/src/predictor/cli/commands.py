"""Look at, verify, describe and run a LightGBM model; nothing is loaded that was not verified."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from predictor._features import features_of, labels_of
from predictor._model_file import parse_model_text, read_model
from predictor._outputs import output_names
from predictor._system import available_cpus
from predictor.cli.progress import ending_cleanly, shown
from predictor.cli.streaming import Source, Task, answer_pieces, counted_from
from predictor.cli.tables import Piece, Row, TableError, read_pieces, read_rows, writer
from predictor.drift import DriftMonitor
from predictor.errors import ManifestError
from predictor.manifest import Label, RowPolicy
from predictor.manifest_writer import write_manifest
from predictor.model import Model

__all__ = ["Command", "bench", "explain", "inspect", "manifest", "predict", "report", "verify"]

Command = Callable[[argparse.Namespace], int]
_TIMED_PIECES = 8  # of a large file `bench` takes the first rows


def inspect(args: argparse.Namespace) -> int:
    """Print what a model is: version, features, classes, importances."""
    model = _load(args)
    info = dataclasses.asdict(model.info)
    used = sorted(model.importances().items(), key=lambda item: -item[1][1])
    if args.json:
        info["importances"] = {name: {"splits": splits, "gain": gain} for name, (splits, gain) in used}
        if model.manifest is not None:
            info["provenance"] = dict(model.manifest.provenance)
            info["metrics"] = {name: metric.model_dump() for name, metric in model.manifest.metrics.items()}
        _say(json.dumps(info, indent=1))
        return 0
    for name in ("name", "version", "sha256", "engine", "objective", "output", "n_trees"):
        _say(f"{name:<10} {info[name]}")
    if model.info.engine_reason:
        _say(f"{'':<10} not the native kernel: {model.info.engine_reason}")
    if model.info.classes:
        _say(f"{'classes':<10} {', '.join(map(str, model.info.classes))}")
    if model.manifest is not None:
        for name, metric in model.manifest.metrics.items():
            beside = "" if metric.baseline is None else f" (baseline {metric.baseline:g})"
            _say(f"{'metric':<10} {name} {metric.model:g}{beside}")
    _say(f"\n{'feature':<24} {'splits':>8} {'gain':>12}")
    for name, (splits, gain) in used:
        _say(f"{name:<24} {splits:>8} {gain:>12.6g}")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check bytes, text, manifest and golden rows; exit 0 only if all hold."""
    model = _load(args)
    golden = len(model.manifest.golden) if model.manifest is not None else 0
    info = model.info
    _say(f"ok: {info.name} {info.version}, {info.n_trees} trees, {golden} golden rows, {info.engine}")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Predict every row of a file, which need not fit in memory; the output keeps the order."""
    model = _load(args)
    monitor = None
    if args.drift:
        if model.manifest is None:
            raise ManifestError("drift is measured against a manifest; make one with 'predictor manifest'")
        monitor = DriftMonitor(model.manifest)
    names = output_names(model.info, is_raw=args.raw)
    task = _Predict(names, args.raw, monitor)
    _stream(args, model, task, dict.fromkeys(names, float), jobs=1 if monitor is not None else args.jobs)
    if monitor is not None:
        for drift in monitor.report():
            print(json.dumps(dataclasses.asdict(drift)), file=sys.stderr)
    return 0


@dataclass(frozen=True, slots=True)
class _Predict:
    names: tuple[str, ...]
    is_raw: bool
    monitor: DriftMonitor | None  # counts in this process alone

    def __call__(self, model: Model, rows: Any, first: int) -> list[Row]:
        with counted_from(first):
            if self.monitor is not None:
                self.monitor.observe(rows)
            answers = model.predict(rows, raw=self.is_raw).reshape(len(rows), -1)
        return [dict(zip(self.names, answer, strict=True)) for answer in answers.tolist()]


def explain(args: argparse.Namespace) -> int:
    """Write the features that moved each row's raw scores most (SHAP); the file need not fit in memory."""
    columns = {"row": int, "output": str, "rank": int, "feature": str, "contribution": float}
    _stream(args, _load(args), _Explain(args.top), columns, jobs=args.jobs)
    return 0


@dataclass(frozen=True, slots=True)
class _Explain:
    top: int

    def __call__(self, model: Model, rows: Any, first: int) -> list[Row]:
        with counted_from(first):
            explanation = model.explain(rows)
        labels = model.info.classes if model.info.n_classes > 1 else model.info.classes[1:]
        return [
            {
                "row": first + row,
                "output": output,
                "rank": rank,
                "feature": share.feature,
                "contribution": share.value,
            }
            for row in range(len(rows))
            for output in labels or range(model.info.n_classes)
            for rank, share in enumerate(explanation.top(self.top, row=row, output=output), 1)
        ]


def _stream(
    args: argparse.Namespace, model: Model, task: Task, columns: dict[str, type], *, jobs: int | None
) -> None:
    """Write what *task* makes of each piece of the file; a signal that ends the process leaves no half file."""
    source = Source(args.model, args.manifest, args.sha256)
    answered = answer_pieces(
        source, model, task, read_pieces(args.rows), jobs=jobs if jobs is not None else available_cpus()
    )
    with ending_cleanly(), closing(answered), writer(args.output, sys.stdout, columns) as write:
        for part in shown(answered, args.rows, is_quiet=args.output is None):
            write(part.lines)


def manifest(args: argparse.Namespace) -> int:
    """Make <model>.manifest.json from a model and sample rows."""
    categories = _categories(args.categories)
    text = parse_model_text(read_model(args.model)).summary
    labels = labels_of(text, names=text.feature_names, categories=categories)
    # A column is read by what the model file or --categories says it is, before there is a manifest.
    features = features_of(text, integers=tuple(_listed(args.integers)), labels=labels)
    rows = [row for block in read_rows(args.rows, features) for row in block]
    expected = [row.pop(args.expected, None) for row in rows] if args.expected else None
    if expected is not None and None in expected:
        raise TableError(f"{args.rows.name} has no {args.expected!r} in row {expected.index(None)}")
    made = write_manifest(
        args.model,
        rows,
        name=args.name,
        version=args.version,
        classes=tuple(_listed(args.classes)),
        names=tuple(_listed(args.names)) or None,
        integers=tuple(_listed(args.integers)),
        nullable=tuple(_listed(args.nullable)) if args.nullable is not None else None,
        categories=categories,
        policy=_policy(args.allow),
        golden=args.golden,
        expected=expected,
        path=args.output,
    )
    _say(f"ok: {made.name} {made.version}, {len(made.features)} features, {len(made.golden)} golden rows")
    if expected is None:
        _say(
            "not compared with the trained model: pass --expected COLUMN, its own predictions for these rows"
        )
    return 0


def _categories(path: Path | None) -> dict[str, list[Label]] | None:
    """Read labels by feature, in the order of the codes, from a JSON object."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TableError(f"{path.name} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(labels, list) for labels in found.values()):
        raise TableError(f'{path.name} must be one object of lists, such as {{"side": ["buy", "sell"]}}')
    return found


def _policy(words: Sequence[str]) -> RowPolicy | None:
    """Turn `--allow unseen` into `RowPolicy(unseen="allow")`."""
    lenient = {"missing": "null", "extra": "ignore", "boolean": "number", "large_integer": "round"}
    return RowPolicy.model_validate({word: lenient.get(word, "allow") for word in words}) if words else None


def bench(args: argparse.Namespace) -> int:
    """Time one row and batches on this machine, on varied rows."""
    from predictor.cli.timing import time_model

    model = _load(args)
    pieces = islice(read_pieces(args.rows), _TIMED_PIECES)
    rows = [row for piece in pieces for row in _listed_rows(piece, model)]
    if not rows:
        raise TableError(f"{args.rows.name} has no rows")
    for line in time_model(model, rows, calls=args.calls):
        _say(line)
    return 0


def report(args: argparse.Namespace) -> int:
    """Write one HTML page with pictures: importances, feature ranges, calibration."""
    from predictor.cli.report import render_report

    model = _load(args)
    rows: list[Row] = []
    labels: list[Any] = []
    for block in read_rows(args.rows, model.features):
        for row in block:
            if args.label is not None:
                if args.label not in row:
                    raise TableError(f"{args.rows.name} has no column {args.label!r}")
                labels.append(row.pop(args.label))
            rows.append({name: row[name] for name in model.info.features if name in row})
    args.output.write_text(render_report(model, rows, labels if args.label is not None else None), "utf-8")
    _say(f"ok: {args.output}")
    return 0


def _load(args: argparse.Namespace) -> Model:
    return Model.load(args.model, manifest=args.manifest, sha256=args.sha256)


def _listed_rows(piece: Piece, model: Model) -> list[Row]:
    rows = piece.rows(model.features, model.info.features)
    return rows if isinstance(rows, list) else rows.to_pylist()


def _listed(text: str) -> Iterable[str]:
    return (item.strip() for item in text.split(",") if item.strip())


def _say(line: str) -> None:
    print(line)
