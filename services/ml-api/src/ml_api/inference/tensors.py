"""
The Open Inference Protocol (KServe V2), as JSON: any LightGBM model that was loaded, asked with tensors.

A request brings either one tensor of shape [n, features], columns in the model's order, or one tensor of shape [n] or
[n, 1] for each feature, by name; the latter is the way to send features of different datatypes. Both become rows by
feature name, so one encoder, the model's, and one policy, its manifest's, reads both. `null` is a missing value. The
answer is one tensor, `predict`. The binary tensor extension is not spoken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, Literal

import jiter
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_api.http.problems import Problem
from ml_api.inference.datatypes import Datatype, DatatypeMismatch, typed_values
from predictor import Model

__all__ = [
    "InferRequest",
    "InferResponse",
    "encode_inference",
    "model_metadata",
    "parse_inference",
    "rows_of",
]

OUTPUT = "predict"

Size = Annotated[int, Field(ge=0, le=10_000_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, protected_namespaces=())


class Tensor(_Part):
    """One tensor: its values row by row, flat or nested as its shape."""

    name: Annotated[str, Field(max_length=256)]
    shape: Annotated[list[Size], Field(min_length=1, max_length=2)]
    datatype: Datatype
    data: list[Any]


class RequestedOutput(_Part):
    """An output that the caller wants; there is one."""

    name: Literal["predict"]


class InferRequest(_Part):
    """A request of the protocol; `parameters` are accepted and mean nothing here."""

    id: Annotated[str, Field(max_length=256)] | None = None
    inputs: Annotated[list[Tensor], Field(min_length=1)]
    outputs: list[RequestedOutput] | None = None


class OutputTensor(_Part):
    """The predictions, row by row; null where a row's prediction is no finite number."""

    name: Literal["predict"]
    shape: list[int]
    datatype: Literal["FP64"]
    data: list[float | None]
    parameters: Annotated[
        dict[str, str],
        Field(description="Only where there is a null: `non_finite_rows` counts those rows from 0."),
    ] = {}


class InferResponse(_Part):
    """An answer of the protocol: float64[n], or float64[n, outputs] where a row has several."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


def parse_inference(body: bytes) -> InferRequest:
    """
    Read one request.

    Raises:
        Problem: 422 with the violations; nothing of the body is echoed.
    """
    try:
        document = jiter.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _malformed(
            [{"type": "json_invalid", "loc": ["body"], "msg": f"Invalid JSON: {error}"}]
        ) from None
    try:
        return InferRequest.model_validate(document)
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)[:20]
        violations = [
            {"type": item["type"], "loc": ["body", *item["loc"]], "msg": item["msg"]} for item in items
        ]
        raise _malformed(violations) from None


def rows_of(request: InferRequest, model: Model) -> list[dict[str, Any]]:
    """
    Put the tensors into rows by feature name, which `Model.predict` takes.

    Raises:
        Problem: 422; the tensors do not fit each other, their datatypes or the model.
    """
    features = model.info.features
    first = request.inputs[0]
    if len(request.inputs) == 1 and len(first.shape) == 2 and first.name not in features:
        return _rows(first, features)
    columns = {tensor.name: _column(tensor) for tensor in request.inputs}
    if len(columns) < len(request.inputs) or len({len(values) for values in columns.values()}) != 1:
        raise _unfit("the tensors of features must have different names and the same number of rows")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _rows(tensor: Tensor, features: Sequence[str]) -> list[dict[str, Any]]:
    width = tensor.shape[1]
    if tensor.datatype == "BYTES":
        raise _unfit("text comes in one tensor for each feature, not in a matrix")
    if width != len(features):
        raise _unfit(f"the model has {len(features)} features, the tensor {width} columns")
    values = _values(tensor)
    return [
        dict(zip(features, values[begin : begin + width], strict=True))
        for begin in range(0, len(values), width)
    ]


def _column(tensor: Tensor) -> list[Any]:
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        raise _unfit(f"tensor {tensor.name!r} of one feature must have the shape [n] or [n, 1]")
    return _values(tensor)


def _values(tensor: Tensor) -> list[Any]:
    try:
        return typed_values(_flat(tensor), tensor.datatype)
    except DatatypeMismatch as error:
        raise _unfit(f"value {error.index} of tensor {tensor.name!r} {error.reason}") from None


def _flat(tensor: Tensor) -> list[Any]:
    nested = bool(tensor.data) and isinstance(tensor.data[0], list)
    try:
        values = list(chain.from_iterable(tensor.data)) if nested else tensor.data
    except TypeError:
        raise _unfit(f"tensor {tensor.name!r} is nested in some rows only") from None
    if len(values) != math.prod(tensor.shape):
        raise _unfit(f"tensor {tensor.name!r} has {len(values)} values for the shape {tensor.shape}")
    if any(isinstance(value, list | dict) for value in values):
        raise _unfit(f"tensor {tensor.name!r} is nested deeper than its shape")
    return values


def encode_inference(request: InferRequest, model: Model, name: str, values: NDArray[np.float64]) -> bytes:
    """
    Write the answer; *values* is float64[n] or float64[n, outputs].

    A row whose prediction overflowed has no number: its place is null, and `non_finite_rows` names it. The other rows
    keep theirs.

    Raises:
        Problem: 422; no row has a finite prediction.
    """
    answer: dict[str, Any] = {"model_name": name, "model_version": model.info.version}
    if request.id is not None:
        answer["id"] = request.id
    data = values.ravel().tolist()
    output: dict[str, Any] = {"name": OUTPUT, "shape": list(values.shape), "datatype": "FP64", "data": data}
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
        if not finite.any():
            raise Problem(
                422,
                "prediction-not-finite",
                "The model's prediction is no finite number for any of the rows; their values are too extreme for it",
            )
        output["data"] = [value if math.isfinite(value) else None for value in data]
        output["parameters"] = {"non_finite_rows": ",".join(map(str, np.flatnonzero(~finite).tolist()))}
    answer["outputs"] = [output]
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()


def model_metadata(name: str, model: Model) -> dict[str, Any]:
    """The metadata of one model, as the protocol has it, with the features' names as a parameter."""
    width, outputs = len(model.info.features), model.info.n_classes
    return {
        "name": name,
        "versions": [model.info.version],
        "platform": "lightgbm",
        "inputs": [{"name": "rows", "datatype": "FP64", "shape": [-1, width]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP64", "shape": [-1, outputs] if outputs > 1 else [-1]}],
        "parameters": {
            "features": ",".join(model.info.features),
            "classes": ",".join(map(str, model.info.classes)),
        },
    }


def _unfit(detail: str) -> Problem:
    sentence = f"{detail[0].upper()}{detail[1:]}; GET the model's metadata for its shape"
    return Problem(422, "tensors-do-not-fit", sentence)


def _malformed(violations: list[dict[str, Any]]) -> Problem:
    return Problem(422, "malformed-body", violations)
