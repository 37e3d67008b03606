"""Make the manifest of a freshly trained model: one call after `Booster.save_model`."""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from predictor._features import features_of
from predictor._model_file import parse_model_text, read_model
from predictor.errors import ManifestError, SchemaError
from predictor.integrity import sha256_of
from predictor.manifest import (
    Feature,
    GoldenRow,
    Label,
    Manifest,
    Metric,
    Reference,
    RowPolicy,
    manifest_path,
    named_members,
)
from predictor.model import Model
from predictor.schema import RowSchema

__all__ = ["write_manifest"]

_BINS = 10  # deciles, the usual grid of a population stability index
_SAMPLE = RowPolicy(null="allow", unseen="allow", boolean="number", large_integer="round", extra="ignore")


@named_members("the manifest to write")
def write_manifest(
    model: str | os.PathLike[str],
    rows: Any,
    *,
    name: str,
    version: str,
    classes: Sequence[Label] = (),
    names: Sequence[str] | None = None,
    integers: Collection[str] = (),
    nullable: Collection[str] | None = None,
    categories: Mapping[str, Sequence[Label]] | None = None,
    policy: RowPolicy | None = None,
    provenance: Mapping[str, JsonValue] | None = None,
    metrics: Mapping[str, float] | None = None,
    baseline: Mapping[str, float] | None = None,
    golden: int = 8,
    path: str | os.PathLike[str] | None = None,
) -> Manifest:
    """
    Describe the model file *model* in `<model>.manifest.json`, and prove it by loading the pair.

    Args:
        model: A file that `Booster.save_model` wrote.
        rows: The training rows, or a fair sample of them: array, frame, or list of rows, n >= 1, without
            infinities. Their ranges, nulls and distribution become the reference; *golden* of them, evenly spaced,
            become golden rows. A pandas frame with the training frame's category columns also says which features
            those are, which the model file does not.
        name: What the model is for, such as `trading-signal`.
        version: The version every prediction will carry.
        classes: Class labels in output order: two for a binary model, one per output for a multiclass one.
        names: What rows call the features, in model order; default the names in the model file, with the spaces
            that *rows* have where LightGBM wrote underscores.
        integers: Features that must be whole numbers.
        nullable: Features that may be missing; default those that are missing somewhere in *rows*.
        categories: Labels by feature name, in code order; default the pandas categories in the model file, else
            the codes themselves are the labels. Needed where *rows* is not the training frame and one of its
            categories may have been an ordered one, or not named in `categorical_feature`.
        policy: What to do with rows that do not fit; default refuse everything.
        provenance: Free JSON: data, span, code version, seed, parameters.
        metrics: Measured qualities by name, such as `{"log_loss": 0.91}`.
        baseline: The same qualities for a predictor without skill, measured on the same rows.
        golden: How many golden rows to record.
        path: Where to write; default beside the model.

    Returns:
        The manifest that was written.

    Raises:
        ModelTextError, SchemaError, ManifestError: The model, a row, or what was said about them does not fit.

    Written in one step: a reader sees the old manifest or the whole new one.
    """
    lists = {
        "classes": classes,
        "names": names,
        "integers": integers,
        "nullable": nullable,
        **(categories or {}),
    }
    for what, given in lists.items():
        if isinstance(given, str):  # a sequence of its letters, to Python
            raise ManifestError(f"{what}: pass a list, not the text {given[:40]!r}")
    data = read_model(model)
    text = parse_model_text(data).summary
    names = tuple(names) if names is not None else _spelled(rows, text.feature_names)
    labels = {name: _labels(column) for name, column in (categories or {}).items()}
    drafts = features_of(
        text,
        names=names,
        integers=integers,
        nullable=nullable,
        categories=labels,
        pandas=_pandas_labels(rows, names, text.pandas_categories),
    )
    sample = RowSchema(drafts, _SAMPLE).encode(rows)
    if len(sample) == 0:
        raise ManifestError("a manifest needs at least one sample row")
    features = tuple(
        _observed(feature, sample[:, index], decide_nullable=nullable is None)
        for index, feature in enumerate(drafts)
    )
    draft = Manifest(
        name=name,
        version=version,
        sha256=sha256_of(data),
        lightgbm=importlib.metadata.version("lightgbm"),
        objective=text.objective,
        output=text.output,
        n_trees=text.n_trees,
        n_outputs=text.n_outputs,
        classes=_labels(classes),
        features=features,
        policy=policy or RowPolicy(),
        provenance=dict(provenance or {}),
        metrics=_metrics(metrics or {}, baseline or {}),
    )
    loaded = Model.from_bytes(data, manifest=draft)
    chosen = np.unique(np.linspace(0, len(sample) - 1, num=max(golden, 0), dtype=int))
    manifest = draft.model_copy(update={"golden": _golden_rows(loaded, sample[chosen])})
    Model.from_bytes(data, manifest=manifest)
    manifest.write(path if path is not None else manifest_path(model))
    return manifest


def _spelled(rows: Any, found: tuple[str, ...]) -> tuple[str, ...]:
    """Return what *rows* call the features *found* in the file, where LightGBM has turned spaces into underscores."""
    columns = getattr(rows, "column_names", getattr(rows, "columns", None))
    if columns is None and isinstance(rows, Sequence) and len(rows) and isinstance(rows[0], Mapping):
        columns = rows[0]
    names = [name for name in (() if columns is None else columns) if isinstance(name, str)]
    by_file = {name.replace(" ", "_"): name for name in names}
    return tuple(by_file.get(name, name) for name in found) if len(by_file) == len(names) else found


def _pandas_labels(
    rows: Any, names: Sequence[str], found: tuple[tuple[Label, ...], ...]
) -> dict[str, tuple[Label, ...]] | None:
    """Return the labels *found* in the file by feature, where the category columns of *rows* are the very same."""
    kinds: Any = getattr(rows, "dtypes", None)
    if not found or not hasattr(kinds, "to_dict"):
        return None
    by_name = dict(kinds)
    columns = {
        name: tuple(by_name[name].categories.tolist())
        for name in names
        if str(by_name.get(name)) == "category"
    }
    return columns if tuple(columns.values()) == found else None


def _labels(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return *labels* as Python values: a whole number of NumPy's, as in `classes_`, is none to pydantic."""
    return tuple(label.item() if isinstance(label, np.generic) else label for label in labels)


def _observed(feature: Feature, column: NDArray[np.float64], *, decide_nullable: bool) -> Feature:
    """Return *feature* with its range, nullability and distribution as seen in *column*."""
    seen = column[~np.isnan(column)]
    feature = _with_rare_categories(feature, seen)
    has_nulls = len(seen) < len(column)
    update: dict[str, Any] = {"nullable": has_nulls if decide_nullable else feature.nullable}
    if len(seen) and feature.kind != "category":
        update |= {"min": float(seen.min()), "max": float(seen.max())}
    update["reference"] = _reference(feature, column, seen)
    return feature.model_copy(update=update)


def _with_rare_categories(feature: Feature, seen: NDArray[np.float64]) -> Feature:
    """Add codes that occur in the sample but not in the model: training drops rare ones, rows may still have them."""
    known = feature.codes or ()
    rare = sorted(set(seen.tolist()) - set(known)) if feature.kind == "category" else []
    if not rare:
        return feature
    if feature.categories != known or any(code < 0 or code != int(code) for code in rare):
        raise SchemaError("a sample row has a category that training did not have", feature=feature.name)
    codes = (*known, *map(int, rare))
    return feature.model_copy(update={"categories": codes, "codes": codes})


def _reference(feature: Feature, column: NDArray[np.float64], seen: NDArray[np.float64]) -> Reference:
    edges: NDArray[np.float64] = np.empty(0)
    if feature.kind == "category":
        counts = np.array([np.count_nonzero(seen == code) for code in feature.codes or ()])
    else:
        if len(seen):
            edges = np.unique(np.quantile(seen, np.arange(1, _BINS) / _BINS, method="inverted_cdf"))
        counts = np.bincount(np.searchsorted(edges, seen), minlength=len(edges) + 1)
    shares = counts / max(1, int(counts.sum()))
    return Reference(
        count=len(column),
        null_share=1 - len(seen) / len(column),
        edges=tuple(edges.tolist()),
        shares=tuple(shares.tolist()),
    )


def _metrics(metrics: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, Metric]:
    if unknown := set(baseline) - set(metrics):
        raise ManifestError(f"a baseline without a metric: {', '.join(sorted(unknown))}")
    return {name: Metric(model=value, baseline=baseline.get(name)) for name, value in metrics.items()}


def _golden_rows(model: Model, matrix: NDArray[np.float64]) -> tuple[GoldenRow, ...]:
    shape = (len(matrix), model.info.n_classes)
    raw = model.predict_encoded(matrix, raw=True).reshape(shape)
    output = model.predict_encoded(matrix).reshape(shape)
    features = model.manifest.features if model.manifest is not None else ()
    return tuple(
        GoldenRow(
            row=tuple(_cell(feature, value) for feature, value in zip(features, row, strict=True)),
            raw=tuple(scores),
            output=tuple(outputs),
        )
        for row, scores, outputs in zip(matrix.tolist(), raw.tolist(), output.tolist(), strict=True)
    )


def _cell(feature: Feature, value: float) -> Label | None:
    """Turn an encoded cell back into what a row would say."""
    if math.isnan(value):
        return None
    if feature.kind == "category":
        return (feature.categories or ())[(feature.codes or ()).index(int(value))]
    return value
