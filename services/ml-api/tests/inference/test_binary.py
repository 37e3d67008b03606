"""The binary tensor extension: every datatype in both directions, and malformed bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_api.inference.binary import BinaryMismatch, read_values, write_values
from ml_api.inference.datatypes import Datatype
from ml_api.serving.registry import BUNDLED_MODEL
from predictor import Model

Service = Callable[..., httpx.AsyncClient]
Headers = Callable[..., dict[str, str]]

ROW = [65800.0, 65500.0, 55.0, 40.0, 35.0, 5.0, 0.05, 0.001, 0.01, 0.008, 1.1]
INFER = "/v2/models/btc-eth/infer"

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    "BYTES": st.text(),
    **{f"FP{bits}": st.floats(width=bits) for bits in (16, 32, 64)},
    **{f"INT{bits}": st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}


def message(body: bytes, *tensors: dict[str, Any], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request with the tensor bytes *body*, and the header with the length of its JSON part."""
    head = json.dumps({"inputs": tensors} | more).encode()
    return head + body, {"Inference-Header-Content-Length": str(len(head))}


def tensor(size: int, shape: list[int], datatype: str = "FP64", name: str = "rows") -> dict[str, Any]:
    return {
        "name": name,
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": size},
    }


@given(
    st.sampled_from(get_args(Datatype)).flatmap(lambda name: st.tuples(st.just(name), st.lists(VALUES[name])))
)
def test_binary_tensors_round_trip(drawn: tuple[Datatype, list[Any]]) -> None:
    datatype, values = drawn
    data = write_values(values, datatype)
    found = list(read_values(memoryview(data), len(data), datatype, [len(values)]))
    assert repr([getattr(value, "item", lambda value=value: value)() for value in found]) == repr(values)


@given(st.binary(max_size=64), st.sampled_from(get_args(Datatype)), st.integers(0, 8))
def test_any_bytes_are_read_as_a_tensor_or_raise_binary_mismatch(
    data: bytes, datatype: Datatype, count: int
) -> None:
    try:
        values = read_values(memoryview(data), len(data), datatype, [count])
    except BinaryMismatch:
        return
    assert len(values) == count


@pytest.mark.anyio
async def test_a_binary_matrix_is_answered_with_binary_predictions(
    service: Service, headers: Headers
) -> None:
    rows = np.array([ROW, ROW[::-1]])
    body, length = message(
        rows.tobytes(), tensor(rows.nbytes, [2, 11]), parameters={"binary_data_output": True}
    )
    async with service() as client:
        answer = await client.post(INFER, content=body, headers=headers() | length)
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    output = json.loads(answer.content[:size])["outputs"][0]
    found = np.frombuffer(answer.content[size:], "<f8").reshape(output["shape"])
    assert output["parameters"] == {"binary_data_size": found.nbytes}
    assert "data" not in output
    assert np.array_equal(found, Model.load(BUNDLED_MODEL).predict(rows))


@pytest.mark.anyio
async def test_binary_tensors_carry_text_and_missing_values(
    service: Service, headers: Headers, models_dir: Path
) -> None:
    sizes, colours = np.array([0.5, math.nan], np.float32), b"\1\0\0\0g\1\0\0\0r"
    body, length = message(
        sizes.tobytes() + colours,
        tensor(8, [2], "FP32", "size"),
        tensor(10, [2, 1], "BYTES", "colour"),
    )
    async with service(models_dir=models_dir) as client:
        answer = await client.post("/v2/models/houses/infer", content=body, headers=headers() | length)
    expected = Model.load(models_dir / "houses.txt").predict(
        [{"size": 0.5, "colour": "g"}, {"size": None, "colour": "r"}]
    )
    assert answer.json()["outputs"][0]["data"] == expected.tolist()


@pytest.mark.anyio
async def test_a_key_replays_for_another_request_id_and_is_refused_for_other_bytes(
    service: Service, headers: Headers
) -> None:
    rows = np.array([ROW])
    first, length = message(rows.tobytes(), tensor(88, [1, 11]), id="1")
    again, _ = message(rows.tobytes(), tensor(88, [1, 11]), id="2")
    other, _ = message((rows * 2).tobytes(), tensor(88, [1, 11]), id="1")
    async with service() as client:
        answers = [
            await client.post(INFER, content=body, headers=headers("k") | length)
            for body in (first, again, other)
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 422]
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert answers[2].json()["type"].endswith("key-reused")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("size", "shape", "datatype", "body", "said"),
    [
        (88, [1, 11], "FP64", bytes(80), "has the binary_data_size 88, but only 80 bytes"),
        (88, [1, 11], "FP64", bytes(96), "96 bytes follow the JSON"),
        (80, [1, 11], "FP64", bytes(80), "needs 88"),
        (2**60, [10**7, 10**7], "FP64", bytes(8), "has the binary_data_size"),
        (11, [1, 11], "BOOL", b"\2" * 11, "neither 0 nor 1"),
        (5, [1], "BYTES", b"\5\0\0\0a", "ends in the middle of a text"),
        (3, [1], "BYTES", b"\0\0\0", "ends in the middle of a text"),
        (5, [1], "BYTES", b"\1\0\0\0\xff", "not UTF-8"),
        (5, [2], "BYTES", b"\1\0\0\0a", "its shape needs 2"),
    ],
)
async def test_binary_data_that_does_not_fit_is_422_with_the_reason(
    service: Service,
    headers: Headers,
    size: int,
    shape: list[int],
    datatype: str,
    body: bytes,
    said: str,
) -> None:
    content, length = message(body, tensor(size, shape, datatype))
    async with service() as client:
        answer = await client.post(INFER, content=content, headers=headers() | length)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


@pytest.mark.anyio
@pytest.mark.parametrize("length", ["", "x", "-1", "3.0", "٣", "99999", "9" * 5000])
async def test_an_invalid_inference_header_length_is_422(
    service: Service, headers: Headers, length: str
) -> None:
    encoded = {name.encode(): value.encode() for name, value in headers().items()}
    encoded[b"Inference-Header-Content-Length"] = length.encode()
    async with service() as client:
        answer = await client.post(
            INFER,
            content=b'{"inputs":[]}',
            headers=encoded,
        )
    assert (answer.status_code, "must be the length" in answer.json()["error"]) == (422, True)


@pytest.mark.anyio
@pytest.mark.parametrize("extra", [{}, {"data": [1.0], "parameters": {"binary_data_size": 0}}])
async def test_a_tensor_needs_either_data_or_binary_data(
    service: Service, headers: Headers, extra: dict[str, Any]
) -> None:
    one = {"name": "rows", "shape": [1, 1], "datatype": "FP64"} | extra
    async with service() as client:
        answer = await client.post(INFER, content=json.dumps({"inputs": [one]}).encode(), headers=headers())
    assert (answer.status_code, "either data or" in answer.json()["error"]) == (422, True)
