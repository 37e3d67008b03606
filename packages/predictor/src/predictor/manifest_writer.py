"""Writes the manifest of a trained model: one call after `Booster.save_model`."""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from predictor._cell_rules import UNSEEN
from predictor._features import category_reads, features_of, labels_of
from predictor._model_file import ModelText, parse_model_text, read_model
from predictor._refusals import of_sample
from predictor.errors import ManifestError, SchemaError
from predictor.integrity import Comparison, sha256_of
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
_SAMPLE = RowPolicy(
    null="allow", unseen="allow", boolean="number", large_integer="round", infinite="allow", extra="ignore"
)
# If the sample has such cells, the manifest's policy allows them. These settings apply to all features alike.
_HELD = ("boolean", "large_integer", "infinite")


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
    expected: Any = None,
    path: str | os.PathLike[str] | None = None,
) -> Manifest:
    """
    Describe the model file *model* in `<model>.manifest.json`, and verify both by loading the model with it.

    Pass *expected*, the answers of the trained object itself. A model file does not say how rows were encoded, so this
    is the only proof that the served model answers as the trained one.

    Args:
        model: A file that `Booster.save_model` wrote.
        rows: The training rows, or a random sample of them: array, frame, or list of rows, n >= 1. Their ranges, nulls
            and distribution, and the distribution of their answers, become the reference for drift. *golden* of them,
            evenly spaced, become golden rows. A pandas frame with the training frame's category columns also says which
            features are categories of pandas; the model file does not.
        name: What the model is for, such as `trading-signal`.
        version: The version that every prediction states.
        classes: Class labels in output order: two for a binary model, one per output for a multiclass one.
        names: The features' names in rows, in model order, not in that of *rows*. Default: the names in the model
            file; where LightGBM replaced spaces by underscores, the names of *rows*.
        integers: Features that must be whole numbers.
        nullable: Features that may be missing; default those that are missing somewhere in *rows*.
        categories: Labels by feature name, in code order. Default: the pandas categories in the model file; without
            those, the codes themselves are the labels. Required if *rows* is not the training frame and a category of
            the training frame may have been ordered, or not named in `categorical_feature`.
        policy: What to do with rows that do not fit. Default: refuse them, but allow booleans, infinities and whole
            numbers that no float64 equals if *rows* have them.
        provenance: Any JSON: data, time span, code version, seed, parameters.
        metrics: Quality metrics by name, such as `{"log_loss": 0.91}`.
        baseline: The same metrics of a predictor without skill, on the same rows.
        golden: How many golden rows to record; rows with an infinity, or whose answer is not finite, are not used.
        expected: What the trained object answers for *rows*, compared bit for bit: `booster.predict(rows)`, or
            `predict_proba(rows)` of a classifier; [n] or [n, outputs].
        path: Where to write; default beside the model.

    Returns:
        The manifest that was written.

    Raises:
        ModelTextError, SchemaError, ManifestError: The model, a row, or another argument does not fit.
        GoldenRowMismatch: The model gives other answers than *expected*; nothing was written.

    The file is written atomically: a reader sees the old manifest or the whole new one.
    """
    lists = {
        "classes": classes,
        "names": names,
        "integers": integers,
        "nullable": nullable,
        **(categories or {}),
    }
    for what, given in lists.items():
        if isinstance(given, str):  # which Python would read as a sequence of letters
            raise ManifestError(f"{what}: pass a list, not the text {given[:40]!r}")
    data = read_model(model)
    text = parse_model_text(data).summary
    names = (
        _in_model_order(names, text.feature_names)
        if names is not None
        else _spelled(rows, text.feature_names)
    )
    labels = labels_of(
        text,
        names=names,
        categories={name: _labels(column) for name, column in (categories or {}).items()},
        pandas=_pandas_labels(rows, names, text.pandas_categories),
    )
    drafts = features_of(text, names=names, integers=integers, nullable=nullable, labels=labels)
    reads = {
        **category_reads(drafts, text),
        "unlabelled": [index for index in text.codes if names[index] not in labels],
    }
    try:
        sample = RowSchema(drafts, _SAMPLE, **reads).encode(rows)
    except SchemaError as error:
        if error.policy != "missing":
            raise
        raise of_sample(error) from error
    if len(sample) == 0:
        raise ManifestError("a manifest needs at least one sample row")
    if reads["ordered"]:  # in `sample`, an unseen label of these looks like a null
        told = RowSchema(drafts, _SAMPLE, **{**reads, "ordered": ()}).encode(rows)
        for index in reads["ordered"]:
            if (told[:, index] == UNSEEN).any():
                raise _unseen_in_sample(drafts[index])
    policy = _allowing(policy, lambda strict: RowSchema(drafts, strict, **reads).encode(rows))
    if expected is None:
        _refuse_foreign_codes(drafts, text, sample)
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
        policy=policy,
        provenance=dict(provenance or {}),
        metrics=_metrics(metrics or {}, baseline or {}),
    )
    loaded = Model.from_bytes(data, manifest=draft)
    if expected is not None:
        _check_expected(loaded, sample, expected)
    answers = loaded.predict_encoded(sample).reshape(len(sample), -1)
    manifest = draft.model_copy(
        update={
            "golden": _golden_rows(loaded, sample, count=golden),
            "answers": tuple(_distribution(column) for column in answers.T),
        }
    )
    Model.from_bytes(data, manifest=manifest)
    manifest.write(path if path is not None else manifest_path(model))
    return manifest


def _allowing(policy: RowPolicy | None, encode: Callable[[RowPolicy], object]) -> RowPolicy:
    """Return *policy*, changed to allow the cells of `_HELD` that the sample has, unless the caller refuses them."""
    policy = policy or RowPolicy()
    for word in _HELD:
        try:
            encode(_SAMPLE.model_copy(update={word: "refuse"}))
        except SchemaError as error:
            if error.policy != word:
                raise
            if word in policy.model_fields_set and getattr(policy, word) == "refuse":
                raise ManifestError(
                    f"the policy refuses a sample row ({error}); remove {word!r} from the policy, or the row"
                ) from error
            policy = policy.model_copy(update={word: getattr(_SAMPLE, word)})
    return policy


def _refuse_foreign_codes(drafts: Sequence[Feature], text: ModelText, sample: NDArray[np.float64]) -> None:
    """Refuse a sample in which most codes of a category are not the model's: they are labels, or another frame's."""
    for index in text.listed:
        seen = sample[:, index]
        seen = seen[~np.isnan(seen)]
        strange = ~np.isin(seen, text.codes[index])
        if strange.sum() * 2 > len(seen) and drafts[index].categories == drafts[index].codes:
            raise ManifestError(
                f"feature {drafts[index].name!r}: most sample rows have a category that the model never saw, such as"
                f" {seen[strange][0]:g}; if these are labels, pass them in the order of the codes as"
                " categories={...}; if they are codes, pass the trained model's own predictions as expected="
            )


def _check_expected(model: Model, sample: NDArray[np.float64], expected: Any) -> None:
    """Refuse the model unless it gives *expected* for *sample*, bit for bit."""
    try:
        told = np.asarray(expected, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ManifestError(
            f"expected must be the trained model's answers, an array of numbers ({error})"
        ) from error
    comparison = Comparison()
    comparison.add(model.predict_encoded(sample), told)
    comparison.check("sample rows")


def _in_model_order(names: Sequence[str], found: tuple[str, ...]) -> tuple[str, ...]:
    """
    Return the caller's *names* if none is the name of another feature in the file, *found*.

    Names in the order of a frame, instead of the model's, would make each row's cells change places. A comparison with
    LightGBM's answers for that frame does not show it, because LightGBM reads columns by position.

    Raises:
        ManifestError: A name belongs to a feature at another position.
    """
    positions = {name: index for index, name in enumerate(found)}
    for index, name in enumerate(names):
        at = positions.get(name, positions.get(str(name).replace(" ", "_"), index))
        if at != index:
            raise ManifestError(
                f"names: {name!r} is the name of feature {at} in the model file, not of feature {index}; give names in"
                " the model's order, or none, if rows have the model's names"
            )
    return tuple(names)


def _spelled(rows: Any, found: tuple[str, ...]) -> tuple[str, ...]:
    """
    Return the names of the features in *rows*; *found* are those in the file, with underscores for spaces.

    Raises:
        ManifestError: Two columns of *rows* have the same name in LightGBM.
    """
    columns = getattr(rows, "column_names", getattr(rows, "columns", None))
    if columns is None and isinstance(rows, Sequence) and len(rows) and isinstance(rows[0], Mapping):
        columns = rows[0]
    wanted, by_file = frozenset(found), dict[str, str]()
    for name in map(str, () if columns is None else columns):
        spelled = name.replace(" ", "_")
        if spelled in by_file and spelled in wanted:
            raise ManifestError(
                f"columns {by_file[spelled]!r} and {name!r} have the same name in LightGBM; say which one it was in"
                " names=[...]"
            )
        by_file[spelled] = name
    return tuple(by_file.get(name, name) for name in found)


def _pandas_labels(
    rows: Any, names: Sequence[str], found: tuple[tuple[Label, ...], ...]
) -> dict[str, tuple[Label, ...]] | None:
    """Return the labels *found* in the file by feature, if the category columns of *rows* have the same labels."""
    kinds: Any = getattr(rows, "dtypes", None)
    if not found or not hasattr(kinds, "to_dict"):
        return None
    by_name = {str(name): kind for name, kind in dict(kinds).items()}
    columns = {
        name: tuple(by_name[name].categories.tolist())
        for name in names
        if str(by_name.get(name)) == "category"
    }
    return columns if tuple(columns.values()) == found else None


def _labels(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return *labels* as Python values: pydantic does not accept NumPy's whole numbers, such as those of `classes_`."""
    return tuple(label.item() if isinstance(label, np.generic) else label for label in labels)


def _observed(feature: Feature, column: NDArray[np.float64], *, decide_nullable: bool) -> Feature:
    """Return *feature* with the range, nullability and distribution of *column*."""
    seen = column[~np.isnan(column)]
    feature = _with_rare_categories(feature, seen)
    has_nulls = len(seen) < len(column)
    update: dict[str, Any] = {"nullable": has_nulls if decide_nullable else feature.nullable}
    finite = seen[np.isfinite(seen)]
    if len(finite) and feature.kind != "category":
        update |= {"min": float(finite.min()), "max": float(finite.max())}
    update["reference"] = _distribution(column, feature.codes)
    return feature.model_copy(update=update)


def _with_rare_categories(feature: Feature, seen: NDArray[np.float64]) -> Feature:
    """Add codes that are in the sample and not in the model: training drops rare ones, but rows may have them."""
    known = feature.codes or ()
    rare = sorted(set(seen.tolist()) - set(known)) if feature.kind == "category" else []
    if not rare:
        return feature
    if feature.categories != known or any(code < 0 or code != int(code) for code in rare):
        raise _unseen_in_sample(feature)
    codes = (*known, *map(int, rare))
    return feature.model_copy(update={"categories": codes, "codes": codes})


def _unseen_in_sample(feature: Feature) -> SchemaError:
    return SchemaError(
        "a sample row has a category that training did not have",
        remedy="name all labels in categories={...}, or leave such rows out of the sample",
        feature=feature.name,
    )


def _distribution(column: NDArray[np.float64], codes: Sequence[int] | None = None) -> Reference:
    """Return the distribution of *column* over *codes*, or without codes over the deciles of its finite numbers."""
    seen = column[~np.isnan(column)]
    edges: NDArray[np.float64] = np.empty(0)
    if codes is not None:
        counts = np.array([np.count_nonzero(seen == code) for code in codes], dtype=np.int64)
    else:
        if (finite := seen[np.isfinite(seen)]).size:
            edges = np.unique(np.quantile(finite, np.arange(1, _BINS) / _BINS, method="inverted_cdf"))
        counts = np.bincount(np.searchsorted(edges, seen), minlength=len(edges) + 1)
    return Reference(
        count=len(column),
        null_share=1 - len(seen) / len(column),
        edges=tuple(edges.tolist()),
        shares=tuple((counts / max(1, int(counts.sum()))).tolist()),
    )


def _metrics(metrics: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, Metric]:
    if unknown := set(baseline) - set(metrics):
        raise ManifestError(
            f"baseline has names that metrics does not have: {', '.join(sorted(unknown))}; pass both or neither"
        )
    return {name: Metric(model=value, baseline=baseline.get(name)) for name, value in metrics.items()}


def _golden_rows(model: Model, sample: NDArray[np.float64], *, count: int) -> tuple[GoldenRow, ...]:
    """Return *count* rows, evenly spaced, with their answers; without infinities, which JSON cannot hold."""
    shape = (-1, model.info.n_classes)
    candidates = sample[~np.isinf(sample).any(axis=1)]
    if not len(candidates) or count < 1:
        return ()
    usable = np.isfinite(model.predict_encoded(candidates, raw=True).reshape(shape)).all(axis=1)
    usable &= np.isfinite(model.predict_encoded(candidates).reshape(shape)).all(axis=1)
    candidates = candidates[usable]
    matrix = (
        candidates[np.unique(np.linspace(0, len(candidates) - 1, num=count, dtype=int))]
        if len(candidates)
        else candidates
    )
    raw = model.predict_encoded(matrix, raw=True).reshape(shape)
    output = model.predict_encoded(matrix).reshape(shape)
    features = model.features
    return tuple(
        GoldenRow(
            row=tuple(_cell(feature, value) for feature, value in zip(features, row, strict=True)),
            raw=tuple(scores),
            output=tuple(outputs),
        )
        for row, scores, outputs in zip(matrix.tolist(), raw.tolist(), output.tolist(), strict=True)
    )


def _cell(feature: Feature, value: float) -> Label | None:
    """Return the cell of a row that is encoded as *value*."""
    if math.isnan(value):
        return None
    if feature.kind == "category":
        return (feature.categories or ())[(feature.codes or ()).index(int(value))]
    return value
