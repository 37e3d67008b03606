"""
Answers of the Open Inference Protocol: what a model is asked, and how its outputs are written.

Beside `predict` a model offers, where asked for by name, `probabilities` and `label` of a classifier, and
`contributions` and `bias`: each feature's share of the raw score (SHAP).
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

_MAX_SHARES = 2_000_000
"""Of one answer: contributions cost up to a hundred times a prediction."""


class OutputTensorParameters(Struct):
    """The parameters beside an output's values."""

    non_finite_rows: Annotated[
        str | UnsetType,
        Meta(description="The rows, counted from 0, whose place is null (bytes: NaN or infinite)."),
    ] = UNSET
    iterations: Annotated[
        str | UnsetType, Meta(description="Of `staged`: the number of iterations of each block.")
    ] = UNSET
    binary_data_size: Annotated[
        int | UnsetType, Meta(description="How many bytes behind the JSON are this output's.")
    ] = UNSET


class OutputTensor(Struct):
    """One output, row by row; null where a row's value is no finite number; without data where it comes as bytes."""

    name: Literal[OutputName, "staged"]
    shape: list[int]
    datatype: Datatype
    data: list[float | int | bool | str | None] | UnsetType = UNSET
    parameters: OutputTensorParameters | UnsetType = UNSET


class InferResponse(Struct):
    """An answer of the protocol: `predict` is float64[n], or float64[n, outputs] where a row has several."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | UnsetType = UNSET


def is_costly(request: InferRequest, default: Sequence[OutputName]) -> bool:
    """Whether the answer takes much longer than a prediction: then it is made in a thread."""
    wanted = {output.name for output in request.outputs} if request.outputs else set(default)
    return bool(wanted & {"contributions", "bias"}) or request.parameters.staged is not None


def answer_inference(
    request: InferRequest, model: Model, name: str, rows: Any, default: Sequence[OutputName]
) -> tuple[bytes, int | None]:
    """
    Ask *model*, and write the answer.

    Args:
        default: The outputs of a request that names none.
    Returns:
        The body; and how many bytes of it are JSON, None for all.
    Raises:
        Problem: 422; the model does not offer an output, or no row has a finite prediction.
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
        raise Problem(422, "output-not-offered", f"The model offers no such output: {error}") from None
    answer = InferResponse(name, model.info.version, described, UNSET if request.id is None else request.id)
    text = msgspec.json.encode(answer)
    return b"".join([text, *pieces]), len(text) if pieces else None


class _Answers:
    """The model's answers to the rows of one request; each kind is computed once."""

    def __init__(self, request: InferRequest, model: Model, rows: Any) -> None:
        self._model, self._rows = model, rows
        self._raw, self._iterations = request.parameters.raw, request.iterations

    def of(self, output: RequestedOutput) -> tuple[NDArray[Any], Datatype]:
        """The values of one output, and their datatype."""
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
        """Predictions after so many iterations: float64 [stages, n], or [stages, n, outputs]."""
        stages = self._model.staged(self._rows, self._iterations, raw=self._raw)
        return np.stack([values for _, values in stages])

    @cached_property
    def _explanation(self) -> Explanation:
        shares = len(self._rows) * len(self._model.info.features) * self._model.info.n_classes
        if shares > _MAX_SHARES:
            detail = f"The answer would hold {shares} contributions; at most {_MAX_SHARES} go"
            raise Problem(422, "too-many-rows", detail)
        return self._model.explain(self._rows)

    def _classification(self, count: int) -> NDArray[Any]:
        chances = self._model.predict_proba(self._rows)
        labels = self._model.info.classes or range(chances.shape[1])
        best = np.argsort(-chances, axis=1, kind="stable")[:, :count]
        texts = [
            [f"{row[index]!r}:{index}:{labels[index]}" for index in order]
            for row, order in zip(chances.tolist(), best.tolist(), strict=True)
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
    """One output of the answer; bytes are added to *pieces*. With *iterations*, rows are the second axis."""
    flat = values.ravel().tolist()
    if datatype == "BYTES":
        flat = list(map(str, flat))
    output = OutputTensor(name, list(values.shape), datatype)
    parameters = OutputTensorParameters(iterations=iterations or UNSET)
    if datatype == "FP64" and (lost := _non_finite(values, rows_axis=1 if iterations else 0)):
        parameters.non_finite_rows = lost
    if binary:
        pieces.append(write_values(flat, datatype))
        parameters.binary_data_size = len(pieces[-1])
    else:
        output.data = flat  # where it is no finite number, msgspec writes null
    if parameters != OutputTensorParameters():
        output.parameters = parameters
    return output


def _non_finite(values: NDArray[np.float64], rows_axis: int) -> str:
    """The rows with a value that is no finite number; a Problem where there is no other row."""
    finite = np.isfinite(values).all(axis=tuple(axis for axis in range(values.ndim) if axis != rows_axis))
    if finite.all():
        return ""
    if not finite.any():
        raise Problem(
            422,
            "prediction-not-finite",
            "The model's prediction is no finite number for any of the rows; their values are too extreme for it",
        )
    return ",".join(map(str, np.flatnonzero(~finite).tolist()))
