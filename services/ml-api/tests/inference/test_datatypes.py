"""Tensor values must have their datatype, and both forms of a request are read under the same policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_api.inference.datatypes import DatatypeMismatch, typed_values
from ml_api.serving.registry import BUNDLED_MODEL
from ml_api.trading.indicators import FEATURES
from predictor import Model, write_manifest

Service = Callable[..., httpx.AsyncClient]
Headers = Callable[..., dict[str, str]]

ROW: list[Any] = [65800.0, 65500.0, 55.0, 40.0, 35.0, 5.0, 0.05, 0.001, 0.01, 0.008, 1.1]


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("BOOL", [True, False, None], [1, 0, "true", 1.0, []]),
        ("INT8", [-128, 127, None], [-129, 128, 1.0, True, "1", 2**70]),
        ("UINT8", [0, 255], [-1, 256]),
        ("INT16", [-(2**15), 2**15 - 1], [2**15]),
        ("UINT16", [2**16 - 1], [2**16]),
        ("INT32", [-(2**31)], [2**31]),
        ("UINT32", [2**32 - 1], [2**32]),
        ("INT64", [2**63 - 1, -(2**63)], [2**63]),
        ("UINT64", [2**64 - 1], [2**64, -1]),
        ("FP64", [1, 0.1, -1e308, None], [True, "1", " 1_20 ", float("inf"), float("nan"), {}, []]),
        ("FP32", [1, 0.5, None, 2**24], [2**24 + 1, 1e39, 0.12345678901, 10**400, True, "1"]),
        ("FP16", [1, 0.5, 2048], [2049, 70000, True]),
        ("BYTES", ["x", "", None], [1, True, 1.0]),
    ],
)
def test_values_of_another_datatype_are_refused_with_their_index(
    datatype: Any, good: list[Any], bad: list[Any]
) -> None:
    assert typed_values(good, datatype) == good
    for value in bad:
        with pytest.raises(DatatypeMismatch) as refused:
            typed_values([good[0], value], datatype)
        assert refused.value.index == 1
        assert refused.value.reason.endswith(("requires", "FP16", "FP32", "FP64"))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_fp32_accepts_the_shortest_and_the_full_decimal_form(value: float) -> None:
    assert typed_values([value, float(str(np.float32(value)))], "FP32") == [value, value]


def inputs(form: str, row: list[Any], datatype: str) -> bytes:
    if form == "matrix":
        tensors = [{"name": "rows", "shape": [1, len(row)], "datatype": datatype, "data": row}]
    else:
        tensors = [
            {"name": name, "shape": [1], "datatype": datatype, "data": [value]}
            for name, value in zip(FEATURES, row, strict=True)
        ]
    return json.dumps({"inputs": tensors}).encode()


@pytest.mark.anyio
@pytest.mark.parametrize("odd", [" 1_20 ", "1", True, False, 2**53 + 1, 10**400, None, [], 1.5, 7])
@pytest.mark.parametrize("datatype", ["FP64", "INT64", "BOOL", "FP32"])
async def test_matrix_and_column_tensors_accept_and_predict_the_same(
    service: Service, headers: Headers, odd: Any, datatype: str
) -> None:
    base = ROW if datatype.startswith("FP") else [int(value) for value in ROW]
    row = [odd, *base[1:]]
    async with service() as client:
        answers = [
            await client.post(
                "/v2/models/btc-eth/infer", content=inputs(form, row, datatype), headers=headers()
            )
            for form in ("matrix", "columns")
        ]
    assert answers[0].status_code == answers[1].status_code
    if answers[0].status_code == 200:
        assert answers[0].json()["outputs"] == answers[1].json()["outputs"]
        encoded = [np.float32(value) for value in row] if datatype == "FP32" else row
        expected = Model.load(BUNDLED_MODEL).predict([[float(value) for value in encoded]])
        assert answers[0].json()["outputs"][0]["data"] == expected.ravel().tolist()
    else:
        assert answers[0].status_code == 422
        assert isinstance(odd, bool | str | list | None) or odd > 2**53 or datatype != "FP64"


@pytest.mark.anyio
@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
async def test_nan_and_infinity_literals_are_refused(
    service: Service, headers: Headers, literal: bytes
) -> None:
    body = inputs("matrix", ROW, "FP64").replace(b"65800.0", literal)
    async with service() as client:
        answer = await client.post("/v2/models/btc-eth/infer", content=body, headers=headers())
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] == "json_invalid"
    assert "send null for a missing value" in answer.json()["error"]


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with linear leaves, whose prediction overflows for a large enough value."""
    directory = tmp_path_factory.mktemp("linear")
    x = np.linspace(-5, 5, 400).reshape(-1, 1)
    data = lightgbm.Dataset(x, 1000.0 * x[:, 0], feature_name=["x"], params={"linear_tree": True})
    params = {"objective": "regression", "linear_tree": True, "verbose": -1, "learning_rate": 1.0}
    lightgbm.train(params, data, 3).save_model(directory / "steep.txt")
    write_manifest(directory / "steep.txt", [{"x": float(v)} for v in x[:, 0]], name="steep", version="1")
    return directory


@pytest.mark.anyio
@pytest.mark.parametrize("rows", [3, 3000])  # predicted in the event loop, and in a thread
async def test_an_overflowing_row_is_null_and_the_other_rows_are_answered(
    service: Service, headers: Headers, linear: Path, rows: int
) -> None:
    values = [0.5, 1e306, -0.25, *[1.0] * (rows - 3)]
    tensor = {"name": "x", "shape": [rows], "datatype": "FP64", "data": values}
    async with service(models_dir=linear) as client:
        answer = await client.post(
            "/v2/models/steep/infer", content=json.dumps({"inputs": [tensor]}), headers=headers()
        )
        alone = {**tensor, "shape": [1], "data": [1e306]}
        refused = await client.post(
            "/v2/models/steep/infer", content=json.dumps({"inputs": [alone]}), headers=headers()
        )
    assert answer.status_code == 200, answer.text
    output = answer.json()["outputs"][0]
    model = Model.load(linear / "steep.txt")
    assert output["data"][1] is None
    assert output["data"][0] == model.predict([{"x": 0.5}])[0]
    assert output["data"][2] == model.predict([{"x": -0.25}])[0]
    assert output["parameters"] == {"non_finite_rows": "1"}
    assert refused.status_code == 422
    assert refused.json()["type"].endswith("prediction-not-finite")
