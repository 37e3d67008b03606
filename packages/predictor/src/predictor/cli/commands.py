"""Look at, verify, describe and run a LightGBM model; nothing is loaded that was not verified."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from predictor._features import features_of, labels_of
from predictor._model_file import parse_model_text, read_model
from predictor.cli.tables import Row, TableError, read_rows, writer
from predictor.drift import DriftMonitor
from predictor.errors import ManifestError, SchemaError
from predictor.manifest import Label, RowPolicy
from predictor.manifest_writer import write_manifest
from predictor.model import Model

__all__ = ["Command", "bench", "explain", "inspect", "manifest", "predict", "report", "verify"]

Command = Callable[[argparse.Namespace], int]
T = TypeVar("T")


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
    """Predict every row of a file; the output keeps the order."""
    model = _load(args)
    monitor = None
    if args.drift:
        if model.manifest is None:
            raise ManifestError("drift is measured against a manifest; make one with 'predictor manifest'")
        monitor = DriftMonitor(model.manifest)
    names = _output_names(model, is_raw=args.raw)
    number = 0
    with writer(args.output, sys.stdout, names) as write:
        for block in _progress(_blocks(model, args.rows), quiet=args.output is None):
            with _rows_from(number):
                if monitor is not None:
                    monitor.observe(block)
                answers = model.predict(block, raw=args.raw).reshape(len(block), -1)
            number += len(block)
            write([dict(zip(names, answer, strict=True)) for answer in answers.tolist()])
    if monitor is not None:
        for drift in monitor.report():
            print(json.dumps(dataclasses.asdict(drift)), file=sys.stderr)
    return 0


def explain(args: argparse.Namespace) -> int:
    """Write the features that moved each row's raw scores most (SHAP)."""
    model = _load(args)
    labels = model.info.classes if model.info.n_classes > 1 else model.info.classes[1:]
    outputs = labels or tuple(range(model.info.n_classes))
    number = 0
    with writer(args.output, sys.stdout, ("row", "output", "rank", "feature", "contribution")) as write:
        for block in _progress(_blocks(model, args.rows), quiet=args.output is None):
            with _rows_from(number):
                explanation = model.explain(block)
            write(
                [
                    {
                        "row": number + row,
                        "output": output,
                        "rank": rank,
                        "feature": share.feature,
                        "contribution": share.value,
                    }
                    for row in range(len(block))
                    for output in outputs
                    for rank, share in enumerate(explanation.top(args.top, row=row, output=output), 1)
                ]
            )
            number += len(block)
    return 0


def manifest(args: argparse.Namespace) -> int:
    """Make <model>.manifest.json from a model and sample rows."""
    categories = _categories(args.categories)
    text = parse_model_text(read_model(args.model)).summary
    labels = labels_of(text, names=text.feature_names, categories=categories)
    # A column is read by what the model file or --categories says it is, before there is a manifest.
    features = features_of(text, integers=tuple(_listed(args.integers)), labels=labels)
    rows = [row for block in _progress(read_rows(args.rows, features)) for row in block]
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
    rows = [row for block in _blocks(model, args.rows) for row in block]
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
    for block in _progress(read_rows(args.rows, model.features)):
        for row in block:
            if args.label is not None:
                if args.label not in row:
                    raise TableError(f"{args.rows.name} has no column {args.label!r}")
                labels.append(row.pop(args.label))
            rows.append(_known(row, model))
    args.output.write_text(render_report(model, rows, labels if args.label is not None else None), "utf-8")
    _say(f"ok: {args.output}")
    return 0


def _load(args: argparse.Namespace) -> Model:
    return Model.load(args.model, manifest=args.manifest, sha256=args.sha256)


def _blocks(model: Model, path: Path) -> Iterator[list[Row]]:
    """Read rows, dropping columns such as ids and labels that are no features: a file often has more than the model."""
    for block in read_rows(path, model.features):
        yield [_known(row, model) for row in block]


@contextmanager
def _rows_from(first: int) -> Iterator[None]:
    """Count the row of an error from the start of the file, not of its block."""
    try:
        yield
    except SchemaError as error:
        if error.row is None:
            raise
        raise error.at_row(first + error.row) from error


def _known(row: Row, model: Model) -> Row:
    names = model.info.features
    return {name: row[name] for name in names if name in row}


def _output_names(model: Model, *, is_raw: bool) -> tuple[str, ...]:
    classes = model.info.classes
    if model.info.n_classes > 1:
        labels = classes or tuple(range(model.info.n_classes))
        return tuple(f"{'raw' if is_raw else 'p'}_{label}" for label in labels)
    if is_raw:
        return ("raw",)
    return (f"p_{classes[1]}",) if classes else ("prediction",)


def _listed(text: str) -> Iterable[str]:
    return (item.strip() for item in text.split(",") if item.strip())


def _progress(blocks: Iterator[list[Row]], *, quiet: bool = False) -> Iterator[list[Row]]:
    """Show rows as they pass, on a terminal, where rich is installed (the `cli` extra)."""
    if quiet or not sys.stderr.isatty():
        yield from blocks
        return
    try:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        yield from blocks
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rows", total=None)
        for block in blocks:
            yield block
            progress.advance(task, len(block))


def _say(line: str) -> None:
    print(line)
