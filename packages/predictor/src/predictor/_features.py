"""Reads the features of a model, and the labels of its pandas categories, from the model file alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from predictor._model_file import ModelText
from predictor.errors import ManifestError
from predictor.manifest import Feature, Label, named_members

__all__ = ["category_reads", "features_of", "labels_of"]


def labels_of(
    text: ModelText,
    *,
    names: Sequence[str],
    categories: Mapping[str, Sequence[Label]] | None = None,
    pandas: Mapping[str, Sequence[Label]] | None = None,
) -> dict[str, Sequence[Label]]:
    """
    Return the known labels of each category feature, in the order of the training's codes 0, 1, 2, ...

    Args:
        text: A checked model.
        names: The features' names in rows, in model order.
        categories: Labels that the caller gives; they win over those in the file.
        pandas: The file's pandas categories by feature name, if the caller knows the features. Default: the features
            are derived from the file, if it is unambiguous.

    Raises:
        ManifestError: The file has labels, and does not tell to which features they belong; or it has the caller's in
            another order.
    """
    labels = dict(categories or {})
    columns = [index for index in range(len(names)) if index in text.codes]
    if pandas is None and len(text.pandas_categories) == len(columns) and not _may_hide_a_category(text):
        pandas = {names[i]: found for i, found in zip(columns, text.pandas_categories, strict=True)}
    _refuse_other_order(labels, text.pandas_categories, pandas or {})
    if pandas is not None:
        return {**pandas, **labels}
    # LightGBM trains on the codes of an ordered pandas category as plain numbers, and the file does not say which
    # column that was. If a row's labels were read as those numbers, the answers would be silently wrong.
    if text.pandas_categories and (
        len(labels) < len(text.pandas_categories) or not all(names[index] in labels for index in columns)
    ):
        raise ManifestError(
            f"the file has {len(text.pandas_categories)} pandas categories and does not say of which features;"
            " write the manifest with the training frame as rows, or pass categories for each, ordered ones too"
        )
    return labels


@named_members("the model's features")
def features_of(
    text: ModelText,
    *,
    names: Sequence[str] | None = None,
    integers: Collection[str] = (),
    nullable: Collection[str] | None = None,
    labels: Mapping[str, Sequence[Label]] | None = None,
) -> tuple[Feature, ...]:
    """
    Return the features of *text* in model order, from what the file and the caller say.

    Args:
        text: A checked model.
        names: The features' names in rows, in model order; default the names in the model file.
        integers: Features whose values must be whole numbers.
        nullable: Features that may be missing; default those whose splits show that training had missing values, and
            those that no tree reads.
        labels: The result of `labels_of`. Rows give a category without labels by its codes.

    Raises:
        ManifestError: A name is not a feature, or labels repeat or do not cover the learned codes.
    """
    names = tuple(names) if names is not None else text.feature_names
    if len(names) != len(text.feature_names):
        raise ManifestError(f"{len(names)} names for {len(text.feature_names)} features; give one for each")
    labels = labels if labels is not None else labels_of(text, names=names)
    if nullable is None:
        unread = {index for index, count in enumerate(text.split_counts) if count == 0}
        nullable = [names[index] for index in text.missing | unread]
    known = frozenset(names)
    for name in (*integers, *nullable, *labels):
        if name not in known:
            raise ManifestError(f"{name!r} is not a feature of this model")
    integers, nullable = frozenset(integers), frozenset(nullable)
    return tuple(
        _feature(
            name,
            text.feature_names[index],
            is_integer=name in integers,
            is_nullable=name in nullable,
            learned=text.codes.get(index),
            labels=labels.get(name),
            span=text.ranges.get(index),
        )
        for index, name in enumerate(names)
    )


def category_reads(features: Sequence[Feature], text: ModelText) -> dict[str, list[int]]:
    """
    Return the arguments `ordered` and `as_numbers` of `RowSchema`: category features that some split reads as numbers.

    If the feature was a pandas category in training, LightGBM's package passes an unseen label as a missing value. If
    it was a column of numbers, named in `categorical_feature` for a part of the training, LightGBM gets the number
    itself.
    """
    reads: dict[str, list[int]] = {"ordered": [], "as_numbers": []}
    for index, feature in enumerate(features):
        if feature.kind == "category" and (index not in text.codes or index in text.mixed):
            is_label = feature.categories != feature.codes or feature.categories in text.pandas_categories
            reads["ordered" if is_label or index not in text.mixed else "as_numbers"].append(index)
    return reads


def _refuse_other_order(
    given: Mapping[str, Sequence[Label]],
    found: Sequence[Sequence[Label]],
    pandas: Mapping[str, Sequence[Label]],
) -> None:
    """
    Refuse *given* labels of a feature that are those of the file in another order: labels would change places.

    Args:
        given: The caller's labels by feature.
        found: The pandas categories in the file, of which it may not be known to which features they belong.
        pandas: Those of which it is known.
    """
    told = list(map(list, given.values()))
    unclaimed = [list(labels) for labels in found if list(labels) not in told]
    for name, labels in given.items():
        if not all(isinstance(label, str | int | float) for label in labels):
            continue  # `Feature` refuses other labels
        for own in [pandas[name]] if name in pandas else unclaimed:
            positions = {label: index for index, label in enumerate(own)}
            is_moved = any(positions.get(label, index) != index for index, label in enumerate(labels))
            if is_moved and (name in pandas or set(labels) == set(own)):
                raise ManifestError(
                    f"categories: the labels of {name!r} have another order in the model file: {_few(own)}; pass them"
                    " in that order, or leave them out"
                )


def _few(labels: Sequence[Label]) -> str:
    shown = ", ".join(repr(label)[:40] for label in labels[:10])
    return shown if len(labels) <= 10 else f"{shown}, ..."


def _may_hide_a_category(text: ModelText) -> bool:
    """
    Whether one of the file's pandas categories may belong to a feature that the model reads as numbers.

    That happens if the pandas category was ordered, or if `categorical_feature` named other columns. The count of
    categories can still match, if `categorical_feature` named as many columns of whole numbers instead. Such a feature
    holds codes, so its range in training is whole numbers from 0. Two kinds of labels cannot be misread: text is
    refused where a number belongs, and a label that equals its code is the right number.
    """
    if all(
        all(isinstance(label, str) for label in labels) or labels == tuple(range(len(labels)))
        for labels in text.pandas_categories
    ):
        return False
    most = max(map(len, text.pandas_categories))
    spans = [text.ranges.get(i) for i in range(len(text.feature_names)) if i not in text.codes]
    return any(span is None or (span[0] >= 0 and span[1] < most) for span in spans)


def _feature(
    name: str,
    model_name: str,
    *,
    is_integer: bool,
    is_nullable: bool,
    learned: tuple[int, ...] | None,
    labels: Sequence[Label] | None,
    span: tuple[float, float] | None,
) -> Feature:
    if learned is None and labels is None:
        low, high = span if span is not None else (None, None)
        kind = "integer" if is_integer else "number"
        return Feature.model_validate(
            {
                "name": name,
                "model_name": model_name,
                "kind": kind,
                "nullable": is_nullable,
                "min": _finite(low),
                "max": _finite(high),
            }
        )
    codes = learned or () if labels is None else tuple(range(len(labels)))
    if not set(learned or ()) <= set(codes):
        raise ManifestError(
            f"feature {name!r}: {len(codes)} labels are given, and the model learned code {max(learned or ())};"
            " give a label for each code from 0"
        )
    return Feature(
        name=name,
        model_name=model_name,
        kind="category",
        nullable=is_nullable,
        categories=tuple(labels) if labels is not None else codes,
        codes=codes,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) != float("inf") else None
