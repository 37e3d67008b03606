"""
Read by type checkers, never run: a model from its file to its predictions.

A line with a type error fails without its `ignore`, and a line without one fails with it.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from predictor import Batcher, Explanation, Golden, Model, ModelInfo, ModelSlot, Prediction, SchemaError

model = Model.load("model.txt", sha256="0" * 64, threads=2)
Model.load("model.txt", sha256=b"0")  # type: ignore[arg-type]
Model.load("model.txt", theads=2)  # type: ignore[call-arg]

assert_type(model.predict([{"age": 31.0, "country": "NL"}]), NDArray[np.float64])
assert_type(model.predict_row({"age": 31.0, "country": None}), NDArray[np.float64])
assert_type(model.predict_label(np.zeros((2, 2))), NDArray[Any])
assert_type(model.leaves([[31.0, 0.0]]), NDArray[np.int32])
assert_type(model.explain([[31.0, 0.0]]), Explanation)
assert_type(model.info.version, str)
model.info.version = "2"  # type: ignore[misc]


async def serve(slot: ModelSlot) -> float:
    batcher = Batcher(slot, max_rows=64)
    try:
        prediction = await batcher.predict({"age": 31.0})
    except SchemaError:
        return 0.0
    assert_type(prediction, Prediction)
    assert_type(slot.current, Model)
    assert_type(slot.swap("next.txt", golden=Golden(rows=[[31.0]], raw=[[0.5]])), ModelInfo)
    return float(prediction.values[0])
