"""Outputs on request: labels, probabilities, raw and staged scores, contributions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ml_api.serving.registry import BUNDLED_MODEL
from predictor import Model

pytestmark = pytest.mark.anyio

Service = Callable[..., httpx.AsyncClient]
Headers = Callable[..., dict[str, str]]

ROW = [65800.0, 65500.0, 55.0, 40.0, 35.0, 5.0, 0.05, 0.001, 0.01, 0.008, 1.1]
ROWS = np.array([ROW, [value * 0.7 for value in ROW]])
MODEL = "/v2/models/btc-eth"
MATRIX = {"name": "rows", "shape": [2, 11], "datatype": "FP64", "data": ROWS.tolist()}
COLUMNS = (
    {"name": "size", "shape": [2], "datatype": "FP64", "data": [0.5, None]},
    {"name": "colour", "shape": [2], "datatype": "BYTES", "data": ["g", "r"]},
)


async def infer_outputs(
    client: httpx.AsyncClient, headers: dict[str, str], path: str, *inputs: Any, **more: Any
) -> Any:
    answer = await client.post(path, content=json.dumps({"inputs": inputs} | more).encode(), headers=headers)
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


async def test_requested_labels_and_probabilities_are_returned(service: Service, headers: Headers) -> None:
    wanted = [{"name": "label"}, {"name": "probabilities"}]
    async with service() as client:
        found = await infer_outputs(client, headers(), f"{MODEL}/infer", MATRIX, outputs=wanted)
    model = Model.load(BUNDLED_MODEL)
    assert list(found) == ["label", "probabilities"]
    assert (found["label"]["datatype"], found["label"]["shape"]) == ("BYTES", [2])
    assert found["label"]["data"] == model.predict_label(ROWS).tolist()
    assert found["probabilities"]["data"] == model.predict_proba(ROWS).ravel().tolist()


async def test_a_repeated_output_is_refused(service: Service, headers: Headers) -> None:
    """A request of 50 kB could ask for an answer of 80 MB."""
    wanted = [
        {"name": "predict"},
        {"name": "label"},
        {"name": "predict", "parameters": {"classification": 1}},
    ]
    sent = json.dumps({"inputs": [MATRIX], "outputs": wanted}).encode()
    async with service() as client:
        answer = await client.post(f"{MODEL}/infer", content=sent, headers=headers())
    assert answer.status_code == 422
    (violation,) = answer.json()["detail"]
    assert violation["loc"] == ["body", "outputs"]
    assert "Each output may be requested once" in violation["msg"]


@pytest.mark.parametrize(
    ("sent", "first"),
    [
        ({"inputs": [{}, {}]}, ["inputs", 0]),
        ({"inputs": [MATRIX], "outputs": [{}, {}]}, ["outputs", 0]),
        ({"inputs": [MATRIX | {"shape": ["2", "11"]}]}, ["inputs", 0, "shape", 0]),
    ],
)
async def test_only_the_first_wrong_item_of_a_list_is_reported(
    service: Service, headers: Headers, sent: dict[str, Any], first: list[str | int]
) -> None:
    """The errors of a body of empty objects took a gigabyte, and the lock of the interpreter for seconds."""
    async with service() as client:
        answer = await client.post(f"{MODEL}/infer", content=json.dumps(sent).encode(), headers=headers())
    assert answer.status_code == 422
    places = [violation["loc"][1 : 1 + len(first)] for violation in answer.json()["detail"]]
    assert places
    assert all(place == first for place in places)


async def test_classification_lists_the_most_probable_classes_first(
    service: Service, headers: Headers
) -> None:
    wanted = [{"name": "predict", "parameters": {"classification": 2}}]
    async with service() as client:
        found = await infer_outputs(client, headers(), f"{MODEL}/infer", MATRIX, outputs=wanted)
    probabilities = Model.load(BUNDLED_MODEL).predict_proba(ROWS)
    assert found["predict"]["shape"] == [2, 2]
    probability, index, label = found["predict"]["data"][0].split(":")
    assert int(index) == probabilities[0].argmax()
    assert float(probability) == probabilities[0].max()
    assert label == ("SELL", "HOLD", "BUY")[int(index)]


async def test_parameters_select_raw_and_staged_scores(service: Service, headers: Headers) -> None:
    async with service() as client:
        found = await infer_outputs(
            client, headers(), f"{MODEL}/infer", MATRIX, parameters={"raw": True, "staged": "1,5"}
        )
    model = Model.load(BUNDLED_MODEL)
    stages = [values for _, values in model.staged(ROWS, [1, 5], raw=True)]
    assert found["predict"]["data"] == model.predict(ROWS, raw=True).ravel().tolist()
    assert found["staged"]["shape"] == [2, 2, 3]
    assert found["staged"]["data"] == np.stack(stages).ravel().tolist()
    assert found["staged"]["parameters"] == {"iterations": "1,5"}


async def test_explain_returns_contributions_that_add_up_to_the_raw_score(
    service: Service, headers: Headers, models_dir: Path
) -> None:
    async with service(models_dir=models_dir) as client:
        found = await infer_outputs(client, headers(), "/v2/models/houses/explain", *COLUMNS)
    rows = [{"size": 0.5, "colour": "g"}, {"size": None, "colour": "r"}]
    raw = Model.load(models_dir / "houses.txt").predict(rows, raw=True)
    shares = np.array(found["contributions"]["data"]).reshape(found["contributions"]["shape"])
    assert found["contributions"]["shape"] == [2, 2]
    assert shares.sum(axis=1) + found["bias"]["data"] == pytest.approx(raw, rel=1e-9)


async def test_explain_with_too_many_rows_is_422(service: Service, headers: Headers) -> None:
    tensor = {"name": "rows", "shape": [70_000, 11], "datatype": "FP16"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 1_540_000}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    async with service(max_body_bytes=2_000_000) as client:
        answer = await client.post(
            f"{MODEL}/explain", content=head + bytes(1_540_000), headers=headers() | length
        )
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (422, "too-many-rows")


async def test_an_output_the_model_does_not_offer_is_422_with_the_reason(
    service: Service, headers: Headers, models_dir: Path
) -> None:
    body = json.dumps({"inputs": COLUMNS, "outputs": [{"name": "label"}]}).encode()
    async with service(models_dir=models_dir) as client:
        answer = await client.post("/v2/models/houses/infer", content=body, headers=headers())
    assert answer.status_code == 422
    assert answer.json()["type"].endswith("output-not-offered")
    assert "use predict" in answer.json()["error"]


@pytest.mark.parametrize(
    "parameters", [{"staged": "0"}, {"staged": "1,"}, {"staged": ",".join(["1"] * 17)}, {"raw": 1}]
)
async def test_invalid_parameters_are_422(
    service: Service, headers: Headers, parameters: dict[str, object]
) -> None:
    body = json.dumps({"inputs": [MATRIX], "parameters": parameters}).encode()
    async with service() as client:
        answer = await client.post(f"{MODEL}/infer", content=body, headers=headers())
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "rows", "shape": [1, 2], "datatype": "BYTES", "data": ["0.5", "g"]},
        {"name": "rows", "shape": [1, 2], "datatype": "FP64", "data": [0.5, 1]},
    ],
)
async def test_a_matrix_for_a_model_with_text_categories_is_422_with_the_tensors_to_send(
    service: Service, headers: Headers, models_dir: Path, tensor: dict[str, object]
) -> None:
    body = json.dumps({"inputs": [tensor]}).encode()
    async with service(models_dir=models_dir) as client:
        answer = await client.post("/v2/models/houses/infer", content=body, headers=headers())
    assert answer.status_code == 422
    assert (
        "one tensor of shape [n] for each feature, by its name, instead: size FP64, colour BYTES"
        in (answer.json()["error"])
    )


async def test_index_and_config_list_every_model_and_its_tensors(
    service: Service, headers: Headers, models_dir: Path
) -> None:
    async with service(models_dir=models_dir) as client:
        index = await client.post("/v2/repository/index", headers=headers())
        config = await client.get("/v2/models/houses/config", headers=headers())
        closed = [
            await client.post("/v2/repository/index"),
            await client.get("/v2/models/houses/config"),
            await client.post("/v2/models/houses/explain", content=b"{}"),
        ]
    assert [(model["name"], model["version"], model["state"]) for model in index.json()] == [
        ("btc-eth", "1.0.0", "READY"),
        ("houses", "2.1", "READY"),
    ]
    assert config.json()["input"] == [
        {"name": "size", "data_type": "TYPE_FP64", "dims": [-1]},
        {"name": "colour", "data_type": "TYPE_STRING", "dims": [-1]},
    ]
    assert config.json()["version_policy"] == {"specific": {"versions": ["2.1"]}}
    assert {answer.status_code for answer in closed} == {401}
