"""
Converts tensors to rows for a model.

A request has either one tensor of shape [n, features], with columns in the model's order, or one tensor of shape [n] or
[n, 1] per feature, by its name. Text, and features of different datatypes, need one tensor per feature. The model
encodes the rows by its manifest and policy. `null`, or NaN in bytes, is a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from ml_api.http.problems import Problem
from ml_api.inference.datatypes import Datatype, DatatypeMismatch, typed_values
from ml_api.inference.requests import InputTensor
from predictor import Feature, Model, SchemaError

__all__ = ["datatype_of", "label_datatype", "rows_of", "unfit_row"]

_FLOATS = frozenset({"FP16", "FP32", "FP64"})


def rows_of(tensors: Sequence[InputTensor], model: Model) -> Any:
    """
    Return the tensors as rows for `Model.predict`.

    Raises:
        Problem: 422: the tensors do not fit each other, their datatypes or the model.
    """
    features = model.info.features
    first = tensors[0]
    if len(tensors) == 1 and len(first.shape) == 2 and first.name not in features:
        rows = _matrix(first, model)
    else:
        columns = {tensor.name: _column(tensor) for tensor in tensors}
        if len(columns) < len(tensors) or len({len(values) for values in columns.values()}) != 1:
            raise _unfit("the tensors of features must have different names and the same number of rows")
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return np.empty((0, len(features))) if len(rows) == 0 else rows


def datatype_of(feature: Feature) -> Datatype:
    """Return the usual datatype of a feature; a number may also be sent as any other type of number."""
    match feature.kind:
        case "number":
            return "FP64"
        case "integer":
            return "INT64"
        case _:
            return label_datatype(feature.categories or ())


def label_datatype(labels: Sequence[object]) -> Datatype:
    """Return the datatype of category or class labels."""
    kinds = {type(label) for label in labels}
    return {frozenset({bool}): "BOOL", frozenset({int}): "INT64", frozenset({float}): "FP64"}.get(  # type: ignore[return-value]
        frozenset(kinds), "BYTES"
    )


def unfit_row(error: SchemaError, tensors: Sequence[InputTensor], model: Model) -> Problem:
    """Return the error for a row that the model refused."""
    detail = str(error)
    if len(tensors[0].shape) == 2 and len(tensors) == 1 and _texts(model):
        detail += f"; {_instead(model)}"
    return Problem(422, "row-does-not-fit", detail)


def _matrix(tensor: InputTensor, model: Model) -> Any:
    features, width = model.info.features, tensor.shape[1]
    if tensor.datatype == "BYTES":
        raise _unfit(f"a matrix cannot carry text; {_instead(model)}")
    if width != len(features):
        raise _unfit(f"the model has {len(features)} features, the tensor {width} columns")
    if tensor.binary and tensor.datatype in _FLOATS and not model.info.categories:
        return np.asarray(tensor.values, np.float64).reshape(tensor.shape)
    values = _values(tensor)
    return [
        dict(zip(features, values[begin : begin + width], strict=True))
        for begin in range(0, len(values), width)
    ]


def _instead(model: Model) -> str:
    """Say what to send instead of a matrix, with the first few features and their datatypes."""
    shown = [f"{feature.name} {datatype_of(feature)}" for feature in model.features[:4]]
    more = f" and {len(model.features) - 4} more" if len(model.features) > 4 else ""
    return f"send one tensor of shape [n] for each feature, by its name, instead: {', '.join(shown)}{more}"


def _texts(model: Model) -> bool:
    return any(datatype_of(feature) == "BYTES" for feature in model.features)


def _column(tensor: InputTensor) -> list[Any]:
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        raise _unfit(f"tensor {tensor.name!r} is for one feature, so its shape must be [n] or [n, 1]")
    return _values(tensor)


def _values(tensor: InputTensor) -> list[Any]:
    if tensor.binary:
        values: list[Any] = tensor.values if tensor.datatype == "BYTES" else tensor.values.tolist()
        return values
    try:
        return typed_values(_flat(tensor), tensor.datatype)
    except DatatypeMismatch as error:
        raise _unfit(f"value {error.index} of tensor {tensor.name!r} {error.reason}") from None


def _flat(tensor: InputTensor) -> list[Any]:
    data: list[Any] = tensor.values
    nested = bool(data) and isinstance(data[0], list)
    try:
        values = list(chain.from_iterable(data)) if nested else data
    except TypeError:
        raise _unfit(f"tensor {tensor.name!r} is nested in some rows only") from None
    if len(values) != math.prod(tensor.shape):
        raise _unfit(f"tensor {tensor.name!r} has {len(values)} values for the shape {list(tensor.shape)}")
    if any(isinstance(value, list | dict) for value in values):
        raise _unfit(f"tensor {tensor.name!r} is nested deeper than its shape")
    return values


def _unfit(detail: str) -> Problem:
    sentence = f"{detail[0].upper()}{detail[1:]}; GET the model's metadata to see its tensors"
    return Problem(422, "tensors-do-not-fit", sentence)
