"""
The binary tensor extension: values as little-endian bytes, row by row; a text as 4 bytes of length, then its UTF-8.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_api.inference.datatypes import DTYPES, Datatype

__all__ = ["BinaryMismatch", "read_values", "write_values"]


class BinaryMismatch(ValueError):
    """The bytes do not fit the tensor's datatype and shape; the message is the end of a sentence, without values."""


def read_values(
    data: memoryview, size: int, datatype: Datatype, shape: Sequence[int]
) -> NDArray[Any] | list[str]:
    """
    Return the values of one tensor, flat: an array, or for BYTES a list of texts.

    Args:
        size: The `binary_data_size` of the tensor.
    Raises:
        BinaryMismatch: *data* is shorter, or does not fit the datatype and shape.
    """
    count = math.prod(shape)
    if len(data) != size:
        raise BinaryMismatch(
            f"has the binary_data_size {size}, but only {len(data)} bytes are left in the body"
        )
    if datatype == "BYTES":
        return _texts(data, count)
    dtype = DTYPES[datatype]
    if size != count * dtype.itemsize:
        raise BinaryMismatch(
            f"has {size} bytes; {datatype} of the shape {list(shape)} needs {count * dtype.itemsize}"
        )
    if datatype == "BOOL" and any(byte > 1 for byte in data):
        raise BinaryMismatch("has a byte that is neither 0 nor 1, which BOOL requires")
    return np.frombuffer(data, dtype)


def _texts(data: memoryview, count: int) -> list[str]:
    texts, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise BinaryMismatch("ends in the middle of a text")
        try:
            texts.append(str(data[at + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            raise BinaryMismatch("has a text that is not UTF-8") from None
        at = end
    if len(texts) != count:
        raise BinaryMismatch(f"has {len(texts)} texts; its shape needs {count}")
    return texts


def write_values(values: Iterable[Any], datatype: Datatype) -> bytes:
    """Return *values* as bytes, in their order."""
    if datatype == "BYTES":
        encoded = [text.encode() for text in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    return np.ascontiguousarray(values, DTYPES[datatype]).tobytes()
