"""The routes of the Open Inference Protocol: health, metadata, and `infer` and `explain`, which are safe to retry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ml_api.http.auth import Guard, GuardedRoute
from ml_api.http.endpoints import Endpoint, require_json
from ml_api.http.limits import run_within
from ml_api.inference.metadata import model_config, model_metadata, repository_index
from ml_api.inference.outputs import answer_inference, is_costly
from ml_api.inference.requests import HEADER_LENGTH, InferRequest, InputTensor, OutputName, parse_inference
from ml_api.inference.rows import rows_of, unfit_row
from ml_api.observability.metrics import Metrics
from predictor import ModelSlot, SchemaError

__all__ = ["EXTENSIONS", "inference_routes"]

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration"]
"""The supported extensions of the protocol, by Triton's names."""

# A larger body is parsed and answered in a thread, so that it does not block the event loop.
_INLINE_BYTES = 16_384

Asked: TypeAlias = tuple[InferRequest, list[InputTensor]]


def inference_routes(
    models: Mapping[str, ModelSlot],
    metrics: Metrics,
    *,
    guard: Guard,
    keyed: Sequence[Middleware],
    timeout: float,
) -> list[Route]:
    """
    Return the routes for *models* by name. Health needs no key, because orchestrators and clients ask without one.

    Args:
        guard: Authentication, for every route about models.
        keyed: The middleware of `infer` and `explain`, inside the guard: rate limit, idempotency and so on.
        timeout: Seconds for an answer that is computed in a thread.
    """

    async def server(_: Request) -> Response:
        return JSONResponse({"name": "ml-api", "version": version("ml-api"), "extensions": EXTENSIONS})

    async def healthy(_: Request) -> Response:
        return Response()

    async def index(_: Request) -> Response:
        return JSONResponse(repository_index(models))

    async def metadata(request: Request) -> Response:
        name, slot = _asked(request)
        return JSONResponse(model_metadata(name, slot.current))

    async def config(request: Request) -> Response:
        name, slot = _asked(request)
        return JSONResponse(model_config(name, slot.current))

    async def ready(request: Request) -> Response:
        _asked(request)
        return Response()

    def answers(*default: OutputName) -> Endpoint:
        async def infer(request: Request) -> Response:
            name, slot = _asked(request)
            header_length = request.headers.get(HEADER_LENGTH)
            if header_length is None:
                require_json(request)
            body, model = await request.body(), slot.current

            def answer(asked: Asked | None) -> Response:
                asking, tensors = asked or parse_inference(body, header_length)
                rows = rows_of(tensors, model)
                try:
                    with metrics.model_seconds.time():
                        content, json_size = answer_inference(asking, model, name, rows, default)
                except SchemaError as error:
                    raise unfit_row(error, tensors, model) from None
                if json_size is None:
                    return Response(content, media_type="application/json")
                headers = {HEADER_LENGTH: str(json_size)}
                return Response(content, headers=headers, media_type="application/octet-stream")

            asked = parse_inference(body, header_length) if len(body) <= _INLINE_BYTES else None
            if asked is not None and not is_costly(asked[0], default):
                return answer(asked)
            return await run_within(timeout, partial(answer, asked))

        return infer

    def _asked(request: Request) -> tuple[str, ModelSlot]:
        name: str = request.path_params["name"]
        slot = models.get(name)
        wanted: Any = request.path_params.get("version")
        if slot is None or (wanted is not None and wanted != slot.current.info.version):
            raise HTTPException(404, f"No such model or version; the models are {', '.join(sorted(models))}")
        return name, slot

    of_model = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    guarded = partial(GuardedRoute, guard=guard)
    return [
        Route("/v2", server),
        Route("/v2/health/live", healthy),
        Route("/v2/health/ready", healthy),
        *(guarded(path, metadata) for path in of_model),
        *(guarded(f"{path}/ready", ready) for path in of_model),
        *(guarded(f"{path}/config", config) for path in of_model),
        guarded("/v2/repository/index", index, methods=["POST"]),
        *(
            guarded(f"{path}/{verb}", endpoint, methods=["POST"], middleware=keyed)
            for path in of_model
            for verb, endpoint in (
                ("infer", answers("predict")),
                ("explain", answers("contributions", "bias")),
            )
        ),
    ]
