"""Checks JSON values against the datatypes of the Open Inference Protocol, and converts them to numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

__all__ = ["DTYPES", "Datatype", "DatatypeMismatch", "typed_values"]

Datatype: TypeAlias = Literal[
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

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
}
"""The NumPy type of each datatype, little-endian; BYTES has none."""


class DatatypeMismatch(ValueError):
    """
    A value is not of the tensor's datatype.

    Attributes:
        index: The position of the value, counted row by row.
        reason: What is wrong with it, without the value.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)
        self.index, self.reason = index, reason


def typed_values(values: list[Any], datatype: Datatype) -> list[Any]:
    """
    Check that *values* are of *datatype*, and return them; None, a missing value, is valid for every type.

    FP16 and FP32 give the nearest number of that type. A number with more digits than the type can hold is refused,
    because the model would get another number than the sender meant.

    Raises:
        DatatypeMismatch: A value is not of the type.

    Cost: linear, about 0.1 us per value.
    """
    read = _READERS[datatype]
    typed: list[Any] = []
    for index, value in enumerate(values):
        if value is None:
            typed.append(None)
            continue
        try:
            typed.append(read(value))
        except ValueError as error:
            raise DatatypeMismatch(index, str(error)) from None
    return typed


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("is not true or false, which BOOL requires")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("is not text, which BYTES requires")
    return value


def _integer(name: str) -> Callable[[Any], int]:
    least, most = int(np.iinfo(DTYPES[name]).min), int(np.iinfo(DTYPES[name]).max)

    def read(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"is not a whole number from {least} to {most}, which {name} requires")
        return value

    return read


def _number(value: Any) -> float | int:
    """Return a finite number unchanged; the model's policy decides about large integers."""
    if type(value) is int:
        return value
    if type(value) is not float or not math.isfinite(value):
        raise ValueError("is not a number, which FP64 requires")
    return value


def _narrow(name: str) -> Callable[[Any], float]:
    narrow = DTYPES[name].type

    def read(value: Any) -> float:
        if type(value) not in {int, float}:
            raise ValueError(f"is not a number, which {name} requires")
        try:
            with np.errstate(over="ignore"):
                nearest = narrow(value)
        except OverflowError:
            raise ValueError(f"is too large for {name}") from None
        number = float(nearest)
        if not math.isfinite(number):
            raise ValueError(f"is too large for {name}")
        # Accepted are an equal number, and the shortest text of the nearest number: 0.1 is a valid FP32.
        if number != value and float(str(nearest)) != value:
            raise ValueError(f"has more digits than {name} can hold; send it as FP64")
        return number

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "BOOL": _boolean,
    "BYTES": _text,
    "FP64": _number,
    "FP32": _narrow("FP32"),
    "FP16": _narrow("FP16"),
    **{name: _integer(name) for name, dtype in DTYPES.items() if dtype.kind in "iu"},
}
