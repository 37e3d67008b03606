"""
The binary tensor extension: values as little-endian bytes, row by row; a text as four bytes of length and its UTF-8.

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
    """The bytes are not a tensor of this datatype and shape; the message ends a sentence and quotes none of them."""


def read_values(
    data: memoryview, size: int, datatype: Datatype, shape: Sequence[int]
) -> NDArray[Any] | list[str]:
    """
    The values of one tensor, flat: an array, or texts of BYTES.

    Args:
        size: How many bytes the tensor claims.
    Raises:
        BinaryMismatch: They are not there, or not of this datatype and shape.
    """
    count = math.prod(shape)
    if len(data) != size:
        raise BinaryMismatch(f"claims {size} bytes, of which {len(data)} are there")
    if datatype == "BYTES":
        return _texts(data, count)
    dtype = DTYPES[datatype]
    if size != count * dtype.itemsize:
        raise BinaryMismatch(
            f"has {size} bytes; {datatype} of the shape {list(shape)} takes {count * dtype.itemsize}"
        )
    if datatype == "BOOL" and any(byte > 1 for byte in data):
        raise BinaryMismatch("has a byte that is neither 0 nor 1, as BOOL says")
    return np.frombuffer(data, dtype)


def _texts(data: memoryview, count: int) -> list[str]:
    texts, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise BinaryMismatch("ends within a text")
        try:
            texts.append(str(data[at + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            raise BinaryMismatch("has a text that is not UTF-8") from None
        at = end
    if len(texts) != count:
        raise BinaryMismatch(f"has {len(texts)} texts; its shape says {count}")
    return texts


def write_values(values: Iterable[Any], datatype: Datatype) -> bytes:
    """The bytes of *values*, in their order."""
    if datatype == "BYTES":
        encoded = [text.encode() for text in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    return np.ascontiguousarray(values, DTYPES[datatype]).tobytes()
