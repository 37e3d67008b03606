"""Inspect, verify, describe and run a LightGBM model. Every model is verified before it is used."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from predictor._features import category_reads, features_of, labels_of
from predictor._model_file import parse_model_text, read_model
from predictor._output_names import output_names
from predictor._system import available_cpus
from predictor.cli.expected import Expected
from predictor.cli.progress import ending_cleanly, shown
from predictor.cli.sampling import CoveringSample
from predictor.cli.streaming import Source, Task, answer_pieces, counted_from
from predictor.cli.tables import Piece, Row, TableError, read_pieces
from predictor.cli.writing import require_folder, writer
from predictor.drift import DriftMonitor
from predictor.errors import ManifestError
from predictor.manifest import Label, Manifest, RowPolicy
from predictor.manifest_writer import write_manifest
from predictor.model import Model
from predictor.schema import RowSchema

__all__ = ["Command", "bench", "explain", "inspect", "manifest", "predict", "report", "verify"]

Command = Callable[[argparse.Namespace], int]
_TIMED_PIECES = 8  # `bench` uses only the first pieces of a large file


def inspect(args: argparse.Namespace) -> int:
    """Print a model's version, classes, features and importances."""
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
    """Check SHA-256, model text, manifest and golden rows; exit 0 only if all are right."""
    model = _load(args)
    golden = len(model.manifest.golden) if model.manifest is not None else 0
    info = model.info
    _say(f"ok: {info.name} {info.version}, {info.n_trees} trees, {golden} golden rows, {info.engine}")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Predict every row of a file of any size; the output has the same order."""
    model = _load(args)
    monitor = None
    if args.drift or args.reference is not None:
        reference = _reference(args, model)
        if reference is None:
            raise ManifestError("drift is measured against a manifest; make one with 'predictor manifest'")
        monitor = DriftMonitor(reference)
    names = output_names(model.info, is_raw=args.raw)
    task = _Predict(names, args.raw, monitor)
    _stream(args, model, task, dict.fromkeys(names, float), jobs=1 if monitor is not None else args.jobs)
    if monitor is not None:
        of_answers = () if args.raw else monitor.answers()  # the manifest has no raw scores to compare with
        counted = [*map(dataclasses.asdict, monitor.report()), *map(dataclasses.asdict, of_answers)]
        for drift in counted:
            print(json.dumps(drift), file=sys.stderr)
    return 0


@dataclass(frozen=True, slots=True)
class _Predict:
    names: tuple[str, ...]
    is_raw: bool
    monitor: DriftMonitor | None  # only with one process: it counts the rows of its own process

    def __call__(self, model: Model, rows: Any, first: int) -> list[Row]:
        with counted_from(first):
            answers = model.predict(rows, raw=self.is_raw).reshape(len(rows), -1)
            if self.monitor is not None:
                self.monitor.observe(rows, None if self.is_raw else answers)
        return [dict(zip(self.names, answer, strict=True)) for answer in answers.tolist()]


def explain(args: argparse.Namespace) -> int:
    """Write the features with the largest SHAP contributions to each row's raw scores; for a file of any size."""
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
    """Write the lines that *task* returns for each piece of the file; a signal leaves no partial file."""
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
    data = read_model(args.model)
    text = parse_model_text(data).summary
    names = tuple(_listed(args.names)) or text.feature_names
    labels = labels_of(text, names=names, categories=categories)
    # There is no manifest yet: the model file and --categories say how to read a column.
    features = features_of(text, names=names, integers=tuple(_listed(args.integers)), labels=labels)
    reads = category_reads(features, text)
    schema = partial(RowSchema, features, ordered=reads["ordered"], as_numbers=reads["as_numbers"])
    expected_columns = tuple(_listed(args.expected or ""))
    sample = CoveringSample(schema, args.sample, aside=expected_columns)
    expected = Expected(data, text, features, expected_columns) if expected_columns else None
    with ending_cleanly():
        for piece in shown(read_pieces(args.rows), args.rows, is_quiet=False):
            rows = piece.rows(features, {*names, *expected_columns})
            rows = rows if isinstance(rows, list) else rows.to_pylist()
            with counted_from(piece.first):
                matrix = sample.add(rows)
            if expected is not None:
                expected.add(matrix, expected.values(rows, first=piece.first))
    rows, seen = sample.rows(), sample.seen
    if not rows:
        raise TableError(f"{args.rows.name} has no rows; a manifest needs at least one")
    if expected is not None:
        expected.check()
    made = write_manifest(
        args.model,
        [{name: cell for name, cell in row.items() if name not in expected_columns} for row in rows],
        name=args.name,
        version=args.version,
        classes=tuple(_listed(args.classes)),
        names=tuple(_listed(args.names)) or None,
        integers=tuple(_listed(args.integers)),
        nullable=tuple(_listed(args.nullable)) if args.nullable is not None else None,
        categories=categories,
        policy=_policy(args.allow),
        golden=args.golden,
        expected=expected.values(rows) if expected is not None else None,
        path=args.output,
    )
    _say(f"ok: {made.name} {made.version}, {len(made.features)} features, {len(made.golden)} golden rows")
    if len(rows) < seen:
        _say(
            f"ranges and nulls are from all {seen:,} rows; distributions and golden rows are from {len(rows):,} of them"
            " (--sample)"
        )
    if expected is None:
        _say(
            "not compared with the trained model; to do so, pass --expected COLUMN: its own predictions for these rows"
        )
    else:
        _say(f"all {seen:,} rows have the answer in --expected, bit for bit")
    return 0


def _categories(path: Path | None) -> dict[str, list[Label]] | None:
    """Read labels by feature, in the order of the codes, from a JSON object."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TableError(f"{path.name} is not a readable JSON file: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(labels, list) for labels in found.values()):
        raise TableError(f'{path.name} must be a JSON object of lists, such as {{"side": ["buy", "sell"]}}')
    return found


def _policy(words: Sequence[str]) -> RowPolicy | None:
    """Turn `--allow unseen` into `RowPolicy(unseen="allow")`."""
    lenient = {"missing": "null", "extra": "ignore", "boolean": "number", "large_integer": "round"}
    return RowPolicy.model_validate({word: lenient.get(word, "allow") for word in words}) if words else None


def bench(args: argparse.Namespace) -> int:
    """Time the prediction of single rows and of batches on this machine."""
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
    """Write one HTML page: quality beside a baseline, calibration, feature importance and drift."""
    from predictor.cli.report import Report

    model = _load(args)
    is_ranking = (model.info.objective or "").startswith(("lambdarank", "rank_xendcg"))
    if args.label is not None and is_ranking and args.query is None:
        raise TableError("a ranking is measured per query: name the column of the query with --query")
    if args.query is not None and (args.label is None or not is_ranking):
        raise TableError("--query needs a ranking model, and --label")
    require_folder(args.output)
    reference = _reference(args, model)
    made = Report(model, reference, has_labels=args.label is not None, has_queries=args.query is not None)
    asked = [name for name in (args.label, args.query) if name is not None]
    with ending_cleanly():
        for piece in shown(read_pieces(args.rows), args.rows, is_quiet=False):
            rows = piece.rows(model.features, {*model.info.features, *asked})
            columns = [
                _taken_out(rows, name, args.rows, piece, keep=name in model.info.features) for name in asked
            ]
            with counted_from(piece.first):
                made.add(_without(rows, {*asked} - {*model.info.features}), *columns)
        page = made.page()
        unfinished = args.output.with_name(f".{args.output.name}.{os.getpid()}.part")
        try:
            unfinished.write_text(page, "utf-8")
            unfinished.replace(args.output)
        finally:
            unfinished.unlink(missing_ok=True)
    _say(f"ok: {args.output}")
    return 0


def _taken_out(rows: Any, name: str, path: Path, piece: Piece, *, keep: bool) -> list[Any]:
    """Return the column *name* of *rows* of *piece*: if they are mappings and not *keep*, remove it from them."""
    try:
        if not isinstance(rows, list):
            column: list[Any] = rows.column(name).to_pylist()
            return column
        return [row[name] if keep else row.pop(name) for row in rows]
    except KeyError as error:
        whole = piece.rows(())
        given = list(whole[0]) if isinstance(whole, list) else whole.column_names
        raise TableError(
            f"{path.name} has no column {name!r} (in every row); it has {', '.join(map(str, given[:20]))}"
        ) from error


def _without(rows: Any, names: set[str]) -> Any:
    return rows if isinstance(rows, list) or not names else rows.drop_columns(sorted(names))


def _reference(args: argparse.Namespace, model: Model) -> Manifest | None:
    """Return the manifest that drift is measured against: that of --reference, or else the model's."""
    if args.reference is None:
        return model.manifest
    found, info = Manifest.read(args.reference), model.info
    if (found.output, found.n_outputs) != (info.output, info.n_classes):
        raise ManifestError(
            f"{args.reference.name} describes a model with other outputs: {found.n_outputs} of the kind"
            f" {found.output!r} where this model has {info.n_classes} of the kind {info.output!r}; make the reference"
            " from this model file with 'predictor manifest'"
        )
    for ours, theirs in zip_longest(model.features, found.features):
        if (
            ours is None
            or theirs is None
            or (ours.name, ours.kind == "category") != (theirs.name, theirs.kind == "category")
        ):
            raise ManifestError(
                f"{args.reference.name} describes other features than the model: "
                f"{getattr(theirs, 'name', 'none')} where the model has {getattr(ours, 'name', 'none')}; make the"
                " reference from this model file"
            )
        codes = dict(zip(ours.categories or (), ours.codes or (), strict=True))
        for label, code in zip(theirs.categories or (), theirs.codes or (), strict=True):
            if codes.get(label, code) != code:
                raise ManifestError(
                    f"{args.reference.name} gives {ours.name} {label!r} another code than the model; make the"
                    " reference from this model file"
                )
    # Compared as text, because --classes can give only text.
    own_classes, classes = list(map(str, info.classes)), list(map(str, found.classes))
    if own_classes and classes and own_classes != classes:
        raise ManifestError(
            f"{args.reference.name} has the classes {', '.join(classes)} where the model has"
            f" {', '.join(own_classes)}; answers are compared by position, so give --classes in the same order"
        )
    return found.model_copy(update={"classes": info.classes or found.classes})


def _load(args: argparse.Namespace) -> Model:
    return Model.load(args.model, manifest=args.manifest, sha256=args.sha256)


def _listed_rows(piece: Piece, model: Model) -> list[Row]:
    rows = piece.rows(model.features, model.info.features)
    return rows if isinstance(rows, list) else rows.to_pylist()


def _listed(text: str) -> Iterable[str]:
    return (item.strip() for item in text.split(",") if item.strip())


def _say(line: str) -> None:
    print(line)
