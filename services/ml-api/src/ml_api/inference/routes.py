"""The routes of the Open Inference Protocol: health, metadata, and `infer` under the same promise as /predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ml_api.http.auth import Guard, GuardedRoute
from ml_api.http.endpoints import require_json
from ml_api.http.problems import Problem
from ml_api.inference.tensors import encode_inference, model_metadata, parse_inference, rows_of
from ml_api.observability.metrics import Metrics
from predictor import Model, ModelSlot, SchemaError

__all__ = ["inference_routes"]

_INLINE_BYTES = 16_384  # a larger body is read and answered in a thread: the event loop must not stand for it


def inference_routes(
    models: Mapping[str, ModelSlot], metrics: Metrics, *, guard: Guard, keyed: Sequence[Middleware]
) -> list[Route]:
    """
    The routes for *models*, by name. Orchestrators and clients ask for health before they have a key: that is open.

    Args:
        guard: Stands before all that concerns a model.
        keyed: What `infer` is wrapped in behind it: idempotency and the handler's deadline.
    """

    async def server(_: Request) -> Response:
        return JSONResponse({"name": "ml-api", "version": version("ml-api"), "extensions": []})

    async def healthy(_: Request) -> Response:
        return Response()

    async def metadata(request: Request) -> Response:
        name, slot = _asked(request)
        return JSONResponse(model_metadata(name, slot.current))

    async def ready(request: Request) -> Response:
        _asked(request)
        return Response()

    async def infer(request: Request) -> Response:
        name, slot = _asked(request)
        require_json(request)
        if "inference-header-content-length" in request.headers:
            raise Problem(
                415, "binary-tensors", "Send the tensors as JSON: this service speaks no binary extension"
            )
        body, model = await request.body(), slot.current
        if len(body) <= _INLINE_BYTES:
            answer = answered(name, model, body)
        else:
            answer = await to_thread.run_sync(answered, name, model, body, abandon_on_cancel=True)
        return Response(answer, media_type="application/json")

    def answered(name: str, model: Model, body: bytes) -> bytes:
        asked = parse_inference(body)
        rows = rows_of(asked, model)
        try:
            with metrics.model_seconds.time():
                values = model.predict(rows or np.empty((0, len(model.info.features))))
        except SchemaError as error:
            raise Problem(422, "row-does-not-fit", str(error)) from None
        return encode_inference(asked, model, name, values)

    def _asked(request: Request) -> tuple[str, ModelSlot]:
        name: str = request.path_params["name"]
        slot = models.get(name)
        wanted: Any = request.path_params.get("version")
        if slot is None or (wanted is not None and wanted != slot.current.info.version):
            raise HTTPException(404, f"There is no such model here; there is {', '.join(sorted(models))}")
        return name, slot

    of_model = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    guarded = partial(GuardedRoute, guard=guard)
    return [
        Route("/v2", server),
        Route("/v2/health/live", healthy),
        Route("/v2/health/ready", healthy),
        *(guarded(path, metadata) for path in of_model),
        *(guarded(f"{path}/ready", ready) for path in of_model),
        *(guarded(f"{path}/infer", infer, methods=["POST"], middleware=keyed) for path in of_model),
    ]
