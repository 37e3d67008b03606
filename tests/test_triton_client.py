"""The Open Inference Protocol with a client that others wrote: tritonclient, over HTTP, with JSON tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ml_api.serving.registry import BUNDLED_MODEL
from predictor import Model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tritonclient is built for Linux alone")

ROW = [65800.0, 65500.0, 55.0, 40.0, 35.0, 5.0, 0.05, 0.001, 0.01, 0.008, 1.1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tritonclient_reads_metadata_infers_and_gets_errors_that_it_understands(
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
