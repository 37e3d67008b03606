"""POST /admin/model: serve another model without a restart, in every worker or in none."""

from __future__ import annotations

import logging
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml_api.http.auth import client_address
from ml_api.http.endpoints import Endpoint, read_model, require_json
from ml_api.http.problems import Problem
from ml_api.serving.registry import ModelRegistry
from ml_api.serving.swap import SwapRefused
from ml_api.serving.workers import SwapBusy, WorkerGroup, WorkerVersion

__all__ = ["SwapRequest", "SwapResponse", "admin_endpoint"]

_log = logging.getLogger("ml_api.admin")

_SHOWN = 500  # characters of a path or a reason in a log line


class SwapRequest(BaseModel):
    """The model to serve from now on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="The model file in the service's model directory, absolute or relative to it, with its "
            "manifest beside it.",
        ),
    ]
    sha256: (
        Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="The SHA-256 that the file must have.")]
        | None
    ) = None
    model: (
        Annotated[
            str,
            Field(
                min_length=1, description="The model to replace; default the trading model, or the only one."
            ),
        ]
        | None
    ) = None
    other_signature: Annotated[
        bool,
        Field(
            strict=True,
            description="Whether the new model may have other features, another order of them, or other outputs than "
            "the served one.",
        ),
    ] = False


class SwapResponse(BaseModel):
    """The versions that the workers serve now."""

    model: str
    version: str
    workers: list[WorkerVersion]


def admin_endpoint(group: WorkerGroup, models: ModelRegistry) -> Endpoint:
    """Return the endpoint of POST /admin/model for *models*."""

    async def swap(request: Request) -> Response:
        require_json(request)
        asked = read_model(SwapRequest, await request.body())
        name = asked.model or models.default
        if name is None:
            served = ", ".join(sorted(models.by_name))
            raise Problem(
                422,
                "model-refused",
                f'Send "model" with the name of the model to replace: {served}'
                if served
                else "No model is served; restart the service with one",
            )
        audit = {
            "model": name,
            "file": asked.path[:_SHOWN],
            "client": client_address(request.scope),
            "other_signature": asked.other_signature,
        }
        _log.info("model swap requested", extra=audit)
        try:
            workers = await group.swap(name, asked.path, asked.sha256, other_signature=asked.other_signature)
        except SwapRefused as error:
            _log.warning(
                "model swap refused", extra=audit | {"reason": str(error), "details": error.details[:_SHOWN]}
            )
            raise Problem(422, "model-refused", f"Nothing changed: {error}") from None
        except SwapBusy:
            _log.warning("model swap refused", extra=audit | {"reason": "another swap is running"})
            raise Problem(
                409, "swap-busy", "Another swap is running; try again", {"Retry-After": "5"}
            ) from None
        version = workers[0].version
        _log.info("model swapped", extra=audit | {"version": version, "workers": len(workers)})
        return JSONResponse(SwapResponse(model=name, version=version, workers=workers).model_dump())

    return swap
