"""
The Open Inference Protocol (KServe V2), as JSON: any LightGBM model that was loaded, asked with tensors.

A request brings either one numeric tensor of shape [n, features], columns in the model's order, or one tensor of shape
[n] or [n, 1] for each feature, by name; the latter is the way to send categories (BYTES). `null` is a missing value.
The answer is one tensor, `predict`. The binary tensor extension is not spoken.
"""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_api.http.problems import Problem
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

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]
Size = Annotated[int, Field(ge=0, le=10_000_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Tensor(_Part):
    """One tensor: its values row by row, flat or nested as its shape."""

    name: str
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


class InferResponse(_Part):
    """An answer of the protocol: float64[n], or float64[n, outputs] where a row has several."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


def parse_inference(body: bytes) -> InferRequest:
    """
    Read one request.

    Raises:
        Problem: 422 with the violations; nothing of the body is echoed.
    """
    try:
        return InferRequest.model_validate_json(body)
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)[:20]
        violations = [
            {"type": item["type"], "loc": ["body", *item["loc"]], "msg": item["msg"]} for item in items
        ]
        raise Problem(422, "malformed-body", violations) from None


def rows_of(request: InferRequest, model: Model) -> NDArray[np.float64] | list[dict[str, Any]]:
    """
    Put the tensors into rows that `Model.predict` takes.

    Raises:
        Problem: 422; the tensors do not fit each other or the model.
    """
    features = model.info.features
    first = request.inputs[0]
    if len(request.inputs) == 1 and len(first.shape) == 2 and first.name not in features:
        return _matrix(first, len(features))
    columns = {tensor.name: _column(tensor) for tensor in request.inputs}
    if len(columns) < len(request.inputs) or len({len(values) for values in columns.values()}) != 1:
        raise _unfit("the tensors of features must have different names and the same number of rows")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _matrix(tensor: Tensor, width: int) -> NDArray[np.float64]:
    rows, columns = tensor.shape
    if tensor.datatype == "BYTES":
        raise _unfit("text comes in one tensor for each feature, not in a matrix")
    if columns != width:
        raise _unfit(f"the model has {width} features, the tensor {columns} columns")
    values = _flat(tensor)
    try:
        numbers = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    except (ValueError, OverflowError):
        raise _unfit(f"tensor {tensor.name!r} has a value that is not a number") from None
    return numbers.reshape(rows, columns)


def _column(tensor: Tensor) -> list[Any]:
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        raise _unfit(f"tensor {tensor.name!r} of one feature must have the shape [n] or [n, 1]")
    return _flat(tensor)


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
    """Write the answer; *values* is float64[n] or float64[n, outputs], finite."""
    answer: dict[str, Any] = {"model_name": name, "model_version": model.info.version}
    if request.id is not None:
        answer["id"] = request.id
    data = values.ravel().tolist()
    answer["outputs"] = [{"name": OUTPUT, "shape": list(values.shape), "datatype": "FP64", "data": data}]
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
