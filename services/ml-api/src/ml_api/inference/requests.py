"""
Requests of the Open Inference Protocol (KServe V2): their schema and parser.

A request is JSON. With the binary tensor extension, the bytes of the tensors that have a `binary_data_size` follow the
JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ml_api.http.endpoints import read_model
from ml_api.http.problems import Problem
from ml_api.inference.binary import BinaryMismatch, read_values
from ml_api.inference.datatypes import Datatype

__all__ = ["HEADER_LENGTH", "InferRequest", "InputTensor", "OutputName", "parse_inference"]

HEADER_LENGTH = "inference-header-content-length"
"""The header with the number of bytes of the body that are JSON; the rest are binary tensors."""

OutputName = Literal["predict", "probabilities", "label", "contributions", "bias"]

Size = Annotated[int, Field(ge=0, le=10_000_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, protected_namespaces=())


class TensorParameters(_Part):
    """The parameters of a tensor."""

    binary_data_size: Annotated[
        int | None, Field(ge=0, description="How many of the bytes after the JSON belong to this tensor.")
    ] = None


class Tensor(_Part):
    """One tensor: its values row by row, flat or nested like its shape; or as bytes after the JSON."""

    name: Annotated[str, Field(max_length=256)]
    shape: Annotated[list[Size], Field(min_length=1, max_length=2, fail_fast=True)]
    datatype: Datatype
    data: list[Any] | None = None
    parameters: TensorParameters = TensorParameters()


class OutputParameters(_Part):
    """The parameters of a requested output."""

    binary_data: Annotated[bool | None, Field(description="As bytes after the JSON.")] = None
    classification: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="How many of the most probable classes to return, as `probability:index:label`; 0: none.",
        ),
    ] = 0


class RequestedOutput(_Part):
    """A requested output."""

    name: OutputName
    parameters: OutputParameters = OutputParameters()


def _each_once(outputs: list[RequestedOutput]) -> list[RequestedOutput]:
    """Refuse a repeated output: a small request could ask for any number of large answers."""
    if len({output.name for output in outputs}) < len(outputs):
        raise ValueError("Each output may be requested once")
    return outputs


class RequestParameters(_Part):
    """The parameters of the whole request; others are ignored."""

    raw: Annotated[
        bool, Field(description="Raw scores, before sigmoid, softmax or exp, in `predict` and `staged`.")
    ] = False
    staged: Annotated[
        str | None,
        Field(
            pattern=r"^[1-9][0-9]{0,6}(,[1-9][0-9]{0,6}){0,15}$",
            description="Numbers of iterations, separated by commas. Adds the output `staged`: the predictions after "
            "each of these numbers.",
        ),
    ] = None
    binary_data_output: Annotated[bool, Field(description="All outputs as bytes after the JSON.")] = False


class InferRequest(_Part):
    """A request of the protocol."""

    id: Annotated[str, Field(max_length=256)] | None = None
    # fail_fast: a body of empty objects would give a million errors, which take a gigabyte.
    inputs: Annotated[list[Tensor], Field(min_length=1, fail_fast=True)]
    outputs: Annotated[
        Annotated[list[RequestedOutput], Field(fail_fast=True), AfterValidator(_each_once)] | None,
        Field(description="Each at most once. Default: `predict`; for explain, `contributions` and `bias`."),
    ] = None
    parameters: RequestParameters = RequestParameters()

    @property
    def iterations(self) -> list[int]:
        """The numbers of iterations that `staged` asks for."""
        return [int(count) for count in (self.parameters.staged or "").split(",") if count]


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A tensor with its values: JSON values, maybe nested; or flat values that were read from bytes."""

    name: str
    shape: Sequence[int]
    datatype: Datatype
    values: Any
    binary: bool


def parse_inference(body: bytes, header_length: str | None = None) -> tuple[InferRequest, list[InputTensor]]:
    """
    Read one request.

    Args:
        header_length: The value of the header `HEADER_LENGTH`; None if the whole body is JSON.
    Raises:
        Problem: 422 with the violations; it contains nothing of the body but tensor names.
    """
    size = _json_size(body, header_length)
    request = read_model(InferRequest, body[:size])
    return request, _with_values(request.inputs, memoryview(body)[size:])


def _json_size(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit() and int(header_length[:10]) <= len(body)):
        raise _binary(f"{HEADER_LENGTH} must be the length of the JSON in bytes, at most that of the body")
    return int(header_length)


def _with_values(tensors: Sequence[Tensor], behind: memoryview) -> list[InputTensor]:
    filled, begin = [], 0
    for tensor in tensors:
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise _binary(f"tensor {tensor.name!r} needs either data or the parameter binary_data_size")
        if size is None:
            filled.append(InputTensor(tensor.name, tensor.shape, tensor.datatype, tensor.data, binary=False))
            continue
        try:
            values = read_values(behind[begin : begin + size], size, tensor.datatype, tensor.shape)
        except BinaryMismatch as error:
            raise _binary(f"tensor {tensor.name!r} {error}") from None
        filled.append(InputTensor(tensor.name, tensor.shape, tensor.datatype, values, binary=True))
        begin += size
    if begin != len(behind):
        raise _binary(f"{len(behind)} bytes follow the JSON, but binary_data_size of all tensors is {begin}")
    return filled


def _binary(detail: str) -> Problem:
    return Problem(422, "binary-tensors", f"{detail[0].upper()}{detail[1:]}")
