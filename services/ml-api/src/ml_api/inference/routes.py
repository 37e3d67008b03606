"""The routes of the Open Inference Protocol: health, metadata, and `infer` under the same promise as /predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ml_api.http.endpoints import require_json
from ml_api.http.problems import Problem
from ml_api.inference.tensors import encode_inference, model_metadata, parse_inference, rows_of
from ml_api.observability.metrics import Metrics
from predictor import ModelSlot, SchemaError

__all__ = ["INFERENCE_PUBLIC", "inference_routes"]

INFERENCE_PUBLIC = ("/v2", "/v2/health/live", "/v2/health/ready")
"""What orchestrators and clients ask before they have a key."""

_INLINE_ROWS = 64  # up to these a prediction is shorter than the way to a thread and back


def inference_routes(
    models: Mapping[str, ModelSlot], metrics: Metrics, *, keyed: Sequence[Middleware]
) -> list[Route]:
    """
    The routes for *models*, by name.

    Args:
        keyed: What guards `infer`: idempotency and the handler's deadline.
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
        asked = parse_inference(await request.body())
        model = slot.current
        rows = rows_of(asked, model)
        try:
            with metrics.model_seconds.time():
                if len(rows) <= _INLINE_ROWS:
                    values = model.predict(rows)
                else:
                    values = await to_thread.run_sync(model.predict, rows, abandon_on_cancel=True)
        except SchemaError as error:
            raise Problem(422, "row-does-not-fit", str(error)) from None
        return Response(encode_inference(asked, model, name, values), media_type="application/json")

    def _asked(request: Request) -> tuple[str, ModelSlot]:
        name: str = request.path_params["name"]
        slot = models.get(name)
        wanted: Any = request.path_params.get("version")
        if slot is None or (wanted is not None and wanted != slot.current.info.version):
            raise HTTPException(404, f"There is no such model here; there is {', '.join(sorted(models))}")
        return name, slot

    of_model = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    return [
        Route("/v2", server),
        Route("/v2/health/live", healthy),
        Route("/v2/health/ready", healthy),
        *(Route(path, metadata) for path in of_model),
        *(Route(f"{path}/ready", ready) for path in of_model),
        *(Route(f"{path}/infer", infer, methods=["POST"], middleware=keyed) for path in of_model),
    ]
