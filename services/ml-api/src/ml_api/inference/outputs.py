"""
Computes and writes the outputs of an answer of the Open Inference Protocol.

Every model offers `predict`; a classifier also `probabilities` and `label`; a model without linear trees also
`contributions` and `bias` (SHAP). A request asks for outputs by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

from ml_api.http.problems import Problem
from ml_api.inference.binary import write_values
from ml_api.inference.datatypes import Datatype
from ml_api.inference.requests import InferRequest, OutputName, RequestedOutput
from ml_api.inference.rows import label_datatype
from predictor import Explanation, Model, Unsupported

__all__ = ["InferResponse", "answer_inference", "is_costly"]

_MAX_CONTRIBUTIONS = 2_000_000
"""Most contributions in one answer, because they cost up to a hundred times a prediction."""


class OutputTensorParameters(Struct):
    """The parameters of an output."""

    non_finite_rows: Annotated[
        str | UnsetType,
        Meta(description="The rows, counted from 0, that have a value of null (in bytes: NaN or infinite)."),
    ] = UNSET
    iterations: Annotated[
        str | UnsetType, Meta(description="Of `staged`: the number of iterations of each block.")
    ] = UNSET
    binary_data_size: Annotated[
        int | UnsetType, Meta(description="How many of the bytes after the JSON belong to this output.")
    ] = UNSET


class OutputTensor(Struct):
    """One output, row by row; a value that is not finite is null. An output that is sent as bytes has no `data`."""

    name: Literal[OutputName, "staged"]
    shape: list[int]
    datatype: Datatype
    data: list[float | int | bool | str | None] | UnsetType = UNSET
    parameters: OutputTensorParameters | UnsetType = UNSET


class InferResponse(Struct):
    """An answer of the protocol; `predict` has the shape [n], or [n, outputs] if the model has several outputs."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | UnsetType = UNSET


def is_costly(request: InferRequest, default: Sequence[OutputName]) -> bool:
    """Whether the answer takes much longer than a prediction, so that it should be computed in a thread."""
    wanted = {output.name for output in request.outputs} if request.outputs else set(default)
    return bool(wanted & {"contributions", "bias"}) or request.parameters.staged is not None


def answer_inference(
    request: InferRequest, model: Model, name: str, rows: Any, default: Sequence[OutputName]
) -> tuple[bytes, int | None]:
    """
    Compute the requested outputs of *model* for *rows*, and write the answer.

    Args:
        default: The outputs if the request names none.
    Returns:
        The body, and how many bytes of it are JSON; None for all.
    Raises:
        Problem: 422: the model does not offer an output, no row has a finite prediction, or the answer is too large.
        SchemaError: A row does not fit the model.
    """
    outputs = request.outputs or [RequestedOutput(name=name) for name in default]
    answers = _Answers(request, model, rows)
    described: list[OutputTensor] = []
    pieces: list[bytes] = []
    try:
        for output in outputs:
            values, datatype = answers.of(output)
            binary = output.parameters.binary_data
            binary = request.parameters.binary_data_output if binary is None else binary
            described.append(_described(output.name, values, datatype, binary, pieces))
        if request.iterations:
            staged, binary = answers.staged(), request.parameters.binary_data_output
            described.append(
                _described("staged", staged, "FP64", binary, pieces, iterations=request.parameters.staged)
            )
    except Unsupported as error:
        raise Problem(422, "output-not-offered", f"The model does not offer this output: {error}") from None
    answer = InferResponse(name, model.info.version, described, UNSET if request.id is None else request.id)
    text = msgspec.json.encode(answer)
    return b"".join([text, *pieces]), len(text) if pieces else None


class _Answers:
    """The model's answers to the rows of one request; each kind is computed once."""

    def __init__(self, request: InferRequest, model: Model, rows: Any) -> None:
        self._model, self._rows = model, rows
        self._raw, self._iterations = request.parameters.raw, request.iterations

    def of(self, output: RequestedOutput) -> tuple[NDArray[Any], Datatype]:
        """Return the values of one output, and their datatype."""
        if output.parameters.classification:
            return self._classification(output.parameters.classification), "BYTES"
        match output.name:
            case "predict":
                return self._model.predict(self._rows, raw=self._raw), "FP64"
            case "probabilities":
                return self._model.predict_proba(self._rows), "FP64"
            case "label":
                return self._model.predict_label(self._rows), label_datatype(self._model.info.classes or (0,))
            case "contributions":
                return self._explanation.contributions, "FP64"
            case "bias":
                return self._explanation.bias, "FP64"

    def staged(self) -> NDArray[np.float64]:
        """Return the predictions after each requested number of iterations: [stages, n], or [stages, n, outputs]."""
        stages = self._model.staged(self._rows, self._iterations, raw=self._raw)
        return np.stack([values for _, values in stages])

    @cached_property
    def _explanation(self) -> Explanation:
        count = len(self._rows) * len(self._model.info.features) * self._model.info.n_classes
        if count > _MAX_CONTRIBUTIONS:
            detail = f"The answer would have {count} contributions, more than {_MAX_CONTRIBUTIONS}; send fewer rows"
            raise Problem(422, "too-many-rows", detail)
        return self._model.explain(self._rows)

    def _classification(self, count: int) -> NDArray[Any]:
        probabilities = self._model.predict_proba(self._rows)
        labels = self._model.info.classes or range(probabilities.shape[1])
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
        texts = [
            [f"{row[index]!r}:{index}:{labels[index]}" for index in order]
            for row, order in zip(probabilities.tolist(), best.tolist(), strict=True)
        ]
        return np.array(texts, object).reshape(best.shape)


def _described(
    name: Literal[OutputName, "staged"],
    values: NDArray[Any],
    datatype: Datatype,
    binary: bool,
    pieces: list[bytes],
    *,
    iterations: str | None = None,
) -> OutputTensor:
    """Return one output; with *binary*, its bytes are appended to *pieces*. With *iterations*, rows are axis 1."""
    flat = values.ravel().tolist()
    if datatype == "BYTES":
        flat = list(map(str, flat))
    output = OutputTensor(name, list(values.shape), datatype)
    parameters = OutputTensorParameters(iterations=iterations or UNSET)
    if datatype == "FP64" and (not_finite := _non_finite(values, rows_axis=1 if iterations else 0)):
        parameters.non_finite_rows = not_finite
    if binary:
        pieces.append(write_values(flat, datatype))
        parameters.binary_data_size = len(pieces[-1])
    else:
        output.data = flat  # msgspec writes null for a number that is not finite
    if parameters != OutputTensorParameters():
        output.parameters = parameters
    return output


def _non_finite(values: NDArray[np.float64], rows_axis: int) -> str:
    """Return the numbers of the rows that are not finite, as text; raise a Problem if all rows are so."""
    finite = np.isfinite(values).all(axis=tuple(axis for axis in range(values.ndim) if axis != rows_axis))
    if finite.all():
        return ""
    if not finite.any():
        raise Problem(
            422,
            "prediction-not-finite",
            "No row has a finite prediction: the values are too extreme for the model; send other values",
        )
    return ",".join(map(str, np.flatnonzero(~finite).tolist()))
