"""The Open Inference Protocol: tensors in and out of any model, with the same idempotency as /predict."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.types import Receive, Scope, Send

from idempotency.stores.memory import MemoryStore
from ml_api.http.endpoints import read_model
from ml_api.http.problems import Problem, problem_response
from ml_api.inference.errors import InferenceErrors
from ml_api.inference.routes import EXTENSIONS
from ml_api.serving.admin import SwapRequest
from ml_api.serving.registry import (
    BUNDLED_MODEL,
    ModelRegistry,
    ModelUnusable,
    check_trading_model,
    load_models,
)
from ml_api.settings import Settings
from ml_api.stores.backend import Backend
from ml_api.trading.indicators import FEATURES
from ml_api.trading.types import CLASSES
from predictor import Manifest, Model, manifest_path

pytestmark = pytest.mark.anyio

Service = Callable[..., httpx.AsyncClient]
Headers = Callable[..., dict[str, str]]

ROW = [65800.0, 65500.0, 55.0, 40.0, 35.0, 5.0, 0.05, 0.001, 0.01, 0.008, 1.1]
INFER = "/v2/models/btc-eth/infer"


def tensor(data: list[Any], shape: list[int], name: str = "rows", datatype: str = "FP64") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs)} | more).encode()


async def test_a_matrix_is_answered_with_the_predictions_of_the_model(
    service: Service, headers: Headers
) -> None:
    rows = np.array([ROW, [value * 0.9 for value in ROW]])
    async with service() as client:
        flat = await client.post(
            INFER, content=request(tensor(rows.ravel().tolist(), [2, 11])), headers=headers()
        )
        nested = await client.post(
            INFER, content=request(tensor(rows.tolist(), [2, 11]), id="7"), headers=headers()
        )
    answer = flat.json()
    assert flat.headers["content-type"] == "application/json"
    assert (answer["model_name"], answer["model_version"]) == ("btc-eth", "1.0.0")
    output = answer["outputs"][0]
    assert (output["name"], output["datatype"], output["shape"]) == ("predict", "FP64", [2, 3])
    expected = Model.load(BUNDLED_MODEL).predict(rows)
    assert output["data"] == expected.ravel().tolist()
    assert nested.json()["id"] == "7"
    assert nested.json()["outputs"] == answer["outputs"]


async def test_feature_tensors_carry_categories_and_missing_values(
    service: Service, headers: Headers, models_dir: Path
) -> None:
    columns = (tensor([0.5, None], [2, 1], "size"), tensor(["g", "r"], [2], "colour", "BYTES"))
    async with service(models_dir=models_dir) as client:
        answer = await client.post("/v2/models/houses/infer", content=request(*columns), headers=headers())
    expected = Model.load(models_dir / "houses.txt").predict(
        [{"size": 0.5, "colour": "g"}, {"size": None, "colour": "r"}]
    )
    assert answer.json()["outputs"][0]["shape"] == [2]
    assert answer.json()["outputs"][0]["data"] == expected.tolist()


def test_the_trading_model_needs_the_trading_features_and_classes(models_dir: Path) -> None:
    models = load_models(
        Settings.model_validate({"api_key": "the-key-of-the-tests", "models_dir": models_dir})
    )
    houses, trading = models.by_name["houses"].current, models.by_name["btc-eth"].current
    models.check("houses", houses)
    models.check("houses", trading)  # only the trading model must have its features
    models.check("btc-eth", trading)
    with pytest.raises(ModelUnusable, match="the model houses is not served"):
        models.check("btc-eth", houses)


@pytest.mark.parametrize(
    ("features", "classes"),
    [(FEATURES[::-1], CLASSES), (FEATURES, CLASSES[::-1]), (FEATURES, CLASSES[:2]), (FEATURES, ())],
)
def test_a_trading_model_with_other_features_or_classes_is_refused(
    features: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    other: Any = SimpleNamespace(info=SimpleNamespace(name="x", features=features, classes=classes))
    with pytest.raises(ModelUnusable, match="POST /predict needs"):
        check_trading_model(other)


def test_the_configured_trading_model_is_loaded_or_refused_with_the_reason(
    models_dir: Path, tmp_path: Path
) -> None:
    def loaded(path: Path, **more: object) -> ModelRegistry:
        given = {"api_key": "the-key-of-the-tests", "model_path": path} | more
        # Not validated: a file may vanish after validation.
        return load_models(Settings.model_construct(**given))

    named, altered, absent = tmp_path / "named.txt", tmp_path / "altered.txt", tmp_path / "absent.txt"
    manifest = Manifest.read(manifest_path(BUNDLED_MODEL))
    for path in (named, altered):
        shutil.copy(BUNDLED_MODEL, path)
        manifest.model_copy(update={"version": "7.0"}).write(manifest_path(path))
    altered.write_bytes(BUNDLED_MODEL.read_bytes().replace(b"1", b"2", 1))
    trading = loaded(named).trading
    assert trading is not None
    assert trading.current.info.version == "7.0"
    for path, reason in (
        (altered, "altered.txt is not served"),
        (models_dir / "houses.txt", "POST /predict needs"),
        (absent, "there is no model at"),
    ):
        with pytest.raises(ModelUnusable, match=reason):
            loaded(path)
    assert loaded(absent, rule_fallback=True).trading is None


def test_two_models_with_the_same_name_are_refused(models_dir: Path, tmp_path: Path) -> None:
    for copy in ("one", "two"):
        shutil.copy(models_dir / "houses.txt", tmp_path / f"{copy}.txt")
        shutil.copy(manifest_path(models_dir / "houses.txt"), manifest_path(tmp_path / f"{copy}.txt"))
    with pytest.raises(ModelUnusable, match="another model is also called houses"):
        load_models(Settings.model_validate({"api_key": "the-key-of-the-tests", "models_dir": tmp_path}))


async def test_a_large_batch_is_answered_with_the_predictions_of_the_model(
    service: Service, headers: Headers
) -> None:
    rows = np.tile(ROW, (200, 1))
    async with service() as client:
        answer = await client.post(
            INFER, content=request(tensor(rows.ravel().tolist(), [200, 11])), headers=headers()
        )
    assert answer.json()["outputs"][0]["data"] == Model.load(BUNDLED_MODEL).predict(rows).ravel().tolist()


async def test_a_batch_over_the_deadline_is_504_and_releases_its_key(
    service: Service, headers: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    body = request(tensor(np.tile(ROW, (400, 1)).ravel().tolist(), [400, 11]))

    def stuck(*_: object, **__: object) -> None:
        done.wait(30)

    store = MemoryStore()
    shared = Backend("sqlite", store)
    async with service(backend=shared, handler_timeout=0.05) as hurried, service(backend=shared) as patient:
        monkeypatch.setattr(Model, "predict", stuck)
        cut = await hurried.post(INFER, content=body, headers=headers("k"))
        monkeypatch.undo()
        done.set()
        again = await patient.post(INFER, content=body, headers=headers("k"))
    assert (cut.status_code, again.status_code) == (504, 200)
    assert "idempotency-replayed" not in again.headers


async def test_a_key_replays_for_another_request_id_and_is_refused_for_another_tensor(
    service: Service, headers: Headers
) -> None:
    async with service() as client:
        first = await client.post(INFER, content=request(tensor(ROW, [1, 11]), id="1"), headers=headers("k"))
        again = await client.post(INFER, content=request(tensor(ROW, [1, 11]), id="2"), headers=headers("k"))
        other = await client.post(INFER, content=request(tensor(ROW[::-1], [1, 11])), headers=headers("k"))
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert other.status_code == 422


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"SECRET", "JSON"),
        (request(), "at least 1"),
        (request(tensor([1.0], [1, 11])), "1 values for the shape"),
        (request(tensor([1.0], [1, 1])), "the model has 11 features, the tensor 1 columns"),
        (request(tensor([10**400] * 11, [1, 11])), "sma_7"),
        (request(tensor(["SECRET"] * 11, [1, 11])), "not a number"),
        (request(tensor([[[1.0] * 11]], [1, 11])), "shape"),
        (request(tensor([[1.0] * 11, 3], [2, 11])), "nested"),
        (request(tensor([[[1.0]] * 11], [1, 11])), "nested deeper"),
        (
            request(tensor(ROW, [1, 11]), tensor(ROW, [1, 11], "more")),
            "is for one feature, so its shape must be",
        ),
        (request(tensor(ROW, [1, 11], "sma_7")), "is for one feature, so its shape must be"),
        (request(tensor([1.0, 2.0], [1, 2], "sma_7")), "is for one feature, so its shape must be"),
        (request(tensor(ROW, [11])), "sma_7"),
        (request(tensor(["x"] * 11, [1, 11], datatype="BYTES")), "matrix"),
        (request(tensor([None] * 11, [1, 11])), "sma_7"),
        (request(tensor([1.0], [1], "sma_7")), "sma_21"),
        (request(tensor([1.0], [1], "sma_7"), tensor([1.0, 2.0], [2], "sma_21")), "same number"),
        (request(tensor([1.0], [1], "sma_7"), tensor([1.0], [1], "sma_7")), "different names"),
        (request(tensor([1.0], [-1, 11])), "greater than or equal"),
    ],
)
async def test_tensors_that_do_not_fit_are_422_with_the_reason_and_no_values(
    service: Service, headers: Headers, body: bytes, said: str
) -> None:
    async with service() as client:
        answer = await client.post(INFER, content=body, headers=headers())
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert said.lower() in answer.json()["error"].lower()
    assert b"SECRET" not in answer.content


async def test_of_many_wrong_tensors_the_first_is_reported(service: Service, headers: Headers) -> None:
    async with service() as client:
        answer = await client.post(INFER, content=request(*[tensor([], [-1])] * 1000), headers=headers())
    problem = answer.json()
    assert problem["type"].endswith("malformed-body")
    assert problem["detail"] == [
        {
            "type": "greater_than_equal",
            "loc": ["body", "inputs", 0, "shape", 0],
            "msg": "Input should be greater than or equal to 0",
        }
    ]


def test_at_most_twenty_violations_are_listed() -> None:
    with pytest.raises(Problem) as refused:
        read_model(SwapRequest, json.dumps({f"unknown-{number}": 1 for number in range(1000)}).encode())
    assert len(refused.value.detail) == 20


async def test_a_request_without_rows_or_id_has_an_empty_answer_without_id(
    service: Service, headers: Headers
) -> None:
    async with service() as client:
        answer = await client.post(INFER, content=request(tensor([], [0, 11])), headers=headers())
    output = {"name": "predict", "shape": [0, 3], "datatype": "FP64", "data": []}
    assert answer.json() == {"model_name": "btc-eth", "model_version": "1.0.0", "outputs": [output]}


async def test_metadata_describe_inputs_outputs_features_and_classes(
    service: Service, headers: Headers, models_dir: Path
) -> None:
    async with service(models_dir=models_dir) as client:
        houses = await client.get("/v2/models/houses", headers=headers())
        trading = await client.get("/v2/models/btc-eth", headers=headers())
    assert houses.json() == {
        "name": "houses",
        "versions": ["2.1"],
        "platform": "lightgbm",
        "inputs": [
            {"name": "size", "datatype": "FP64", "shape": [-1]},
            {"name": "colour", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "predict", "datatype": "FP64", "shape": [-1]},
            {"name": "contributions", "datatype": "FP64", "shape": [-1, 2]},
            {"name": "bias", "datatype": "FP64", "shape": [-1]},
        ],
        "features": [
            {"name": "size", "datatype": "FP64", "nullable": True},
            {"name": "colour", "datatype": "BYTES", "nullable": False, "categories": ["r", "g", "b"]},
        ],
        "classes": [],
        "parameters": {"features": "size,colour", "classes": "", "objective": "regression"},
    }
    assert trading.json()["inputs"] == [{"name": "rows", "datatype": "FP64", "shape": [-1, 11]}]
    assert trading.json()["classes"] == ["SELL", "HOLD", "BUY"]
    assert trading.json()["outputs"][:3] == [
        {"name": "predict", "datatype": "FP64", "shape": [-1, 3]},
        {"name": "probabilities", "datatype": "FP64", "shape": [-1, 3]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ]


async def test_an_unknown_model_or_version_is_404_with_the_known_names(
    service: Service, headers: Headers
) -> None:
    async with service() as client:
        answers = [
            await client.get(path, headers=headers())
            for path in ("/v2/models/none", "/v2/models/btc-eth/versions/9", "/v2/models/none/ready")
        ]
        known = await client.get("/v2/models/btc-eth/versions/1.0.0", headers=headers())
        ready = await client.get("/v2/models/btc-eth/ready", headers=headers())
    assert {answer.status_code for answer in answers} == {404}
    assert all("btc-eth" in answer.json()["error"] for answer in answers)
    assert known.json()["parameters"]["classes"] == "SELL,HOLD,BUY"
    assert ready.status_code == 200


async def test_models_require_the_key_and_health_does_not(service: Service) -> None:
    async with service() as client:
        closed = [await client.get(path) for path in ("/v2/models/btc-eth", "/v2/models/btc-eth/ready")]
        infer = await client.post(INFER, content=request(tensor(ROW, [1, 11])))
        opened = [await client.get(path) for path in ("/v2", "/v2/health/live", "/v2/health/ready")]
    assert {answer.status_code for answer in [*closed, infer]} == {401}
    assert {answer.status_code for answer in opened} == {200}
    assert opened[0].json() == {"name": "ml-api", "version": version("ml-api"), "extensions": EXTENSIONS}


async def test_every_refusal_has_the_error_member_of_the_protocol(service: Service, headers: Headers) -> None:
    body, other = request(tensor(ROW, [1, 11])), request(tensor([0.5] * 11, [1, 11]))
    async with service(max_body_bytes=2000, rate_limit=4) as client:
        refusals = [
            await client.post(INFER, content=body),  # no API key
            await client.post(INFER, content=b" " * 3000, headers=headers()),
            await client.post(INFER, content=body, headers=headers('"unterminated')),
            await client.post(INFER, content=body, headers=headers() | {"Content-Encoding": "gzip"}),
            await client.get(INFER, headers=headers()),
        ]
        assert (await client.post(INFER, content=body, headers=headers("k"))).status_code == 200
        refusals.append(await client.post(INFER, content=other, headers=headers("k")))
        refusals.append(await client.post(INFER, content=body, headers=headers()))
    assert [answer.status_code for answer in refusals] == [401, 413, 400, 415, 405, 422, 429]
    for answer in refusals:
        assert answer.json()["error"] == answer.json()["detail"]
        assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_refusal_sent_in_parts_has_the_error_member() -> None:
    async def in_parts(scope: Scope, receive: Receive, send: Send) -> None:
        whole = problem_response(404, "x", "nothing here")
        await send({"type": "http.response.start", "status": 404, "headers": whole.raw_headers})
        await send({"type": "http.response.body", "body": bytes(whole.body[:20]), "more_body": True})
        await send({"type": "http.response.body", "body": bytes(whole.body[20:])})

    transport = httpx.ASGITransport(InferenceErrors(in_parts))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.get("/v2/models")).json()["error"] == "nothing here"


async def test_a_refused_head_request_is_401(service: Service) -> None:
    async with service() as client:
        assert (await client.head("/v2/models/btc-eth")).status_code == 401


async def test_a_path_that_only_starts_with_v2_has_no_error_member(
    service: Service, headers: Headers
) -> None:
    async with service() as client:
        within, beside = [await client.get(path, headers=headers()) for path in ("/v2/nothing", "/v2nothing")]
    assert (within.status_code, beside.status_code) == (404, 404)
    assert "error" in within.json()
    assert "error" not in beside.json()


async def test_reasons_name_tensors_as_the_caller_wrote_them(service: Service, headers: Headers) -> None:
    async with service() as client:
        answer = await client.post(
            INFER, content=request(tensor(["x"] * 11, [1, 11], "MyRows")), headers=headers()
        )
    assert answer.json()["error"].startswith(
        "Value 0 of tensor 'MyRows' is not a number, which FP64 requires; GET the"
    )
