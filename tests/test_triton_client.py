"""The Open Inference Protocol with tritonclient over HTTP, with JSON and binary tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest

from ml_api.serving.registry import BUNDLED_MODEL
from predictor import Model, save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tritonclient is built for Linux alone")

ROW = [65800.0, 65500.0, 55.0, 40.0, 35.0, 5.0, 0.05, 0.001, 0.01, 0.008, 1.1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tritonclient_reads_metadata_infers_and_raises_server_errors(
    serve: Callable[..., Any],
) -> None:
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    service = serve()
    key = dict(service.client.headers)["x-api-key"]
    client = http.InferenceServerClient(f"127.0.0.1:{service.port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("btc-eth", headers={"X-API-Key": key})
        metadata = client.get_model_metadata("btc-eth", headers={"X-API-Key": key})
        assert metadata["inputs"] == [{"name": "rows", "datatype": "FP64", "shape": [-1, 11]}]

        rows = np.array([ROW, ROW[::-1]])
        tensor = http.InferInput("rows", list(rows.shape), "FP64")
        tensor.set_data_from_numpy(rows, binary_data=False)
        wanted = http.InferRequestedOutput("predict", binary_data=False)
        headers = {"X-API-Key": key, "Idempotency-Key": "triton-1"}
        first = client.infer("btc-eth", [tensor], outputs=[wanted], request_id="1", headers=headers)
        again = client.infer("btc-eth", [tensor], outputs=[wanted], request_id="2", headers=headers)
        assert np.array_equal(first.as_numpy("predict"), Model.load(BUNDLED_MODEL).predict(rows))
        assert again.get_response() == first.get_response()

        narrow = http.InferInput("rows", [1, 2], "FP64")
        narrow.set_data_from_numpy(np.zeros((1, 2)), binary_data=False)
        with pytest.raises(InferenceServerException, match="11 features"):
            client.infer("btc-eth", [narrow], outputs=[wanted], headers={"X-API-Key": key})
    finally:
        client.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tritonclient_infers_with_binary_tensors_by_default(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    from tritonclient import http

    sizes, colours = np.arange(6.0), np.array(list("rgbrgb"), object)
    flowers = pd.DataFrame({"size": sizes, "colour": pd.Categorical(colours)})
    estimator = lightgbm.LGBMClassifier(n_estimators=3, min_child_samples=1, verbose=-1)
    estimator.fit(flowers, ["no", "no", "yes", "yes", "no", "yes"])
    save(estimator, tmp_path / "flowers.txt", sample=flowers, name="flowers", version="3")
    service = serve(ML_SERVICE_MODELS_DIR=str(tmp_path))
    key = {"X-API-Key": dict(service.client.headers)["x-api-key"]}
    client = http.InferenceServerClient(f"127.0.0.1:{service.port}")

    def tensor(name: str, values: Any, datatype: str) -> Any:
        made = http.InferInput(name, list(values.shape), datatype)
        return made.set_data_from_numpy(values)

    try:
        index = client.get_model_repository_index(headers=key)
        assert [(model["name"], model["version"]) for model in index] == [
            ("btc-eth", "1.0.0"),
            ("flowers", "3"),
        ]
        assert client.get_model_config("flowers", headers=key)["input"][1]["data_type"] == "TYPE_STRING"
        assert client.get_model_metadata("flowers", headers=key)["classes"] == ["no", "yes"]

        rows = np.array([ROW, ROW[::-1]])
        answer = client.infer("btc-eth", [tensor("rows", rows, "FP64")], headers=key)
        assert np.array_equal(answer.as_numpy("predict"), Model.load(BUNDLED_MODEL).predict(rows))

        inputs = [tensor("size", sizes, "FP64"), tensor("colour", colours, "BYTES")]
        wanted = [http.InferRequestedOutput(name) for name in ("label", "probabilities", "contributions")]
        answer = client.infer(
            "flowers", inputs, outputs=wanted, headers=key, parameters={"staged": "1,2"}, request_id="1"
        )
        assert answer.as_numpy("label").tolist() == [label.encode() for label in estimator.predict(flowers)]
        assert np.array_equal(answer.as_numpy("probabilities"), estimator.predict_proba(flowers))
        assert answer.as_numpy("contributions").shape == (6, 2)
        staged = [estimator.predict_proba(flowers, num_iteration=count)[:, 1] for count in (1, 2)]
        assert np.array_equal(answer.as_numpy("staged"), staged)
        best = http.InferRequestedOutput("predict", class_count=1)
        answer = client.infer("flowers", inputs, outputs=[best], headers=key)
        assert [text.decode().rpartition(":")[2] for text in answer.as_numpy("predict")[:, 0]] == (
            estimator.predict(flowers).tolist()
        )
    finally:
        client.close()
