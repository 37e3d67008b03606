"""POST /admin/model: serve another model without a restart, in every worker or in none."""

from __future__ import annotations

import logging
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml_api.http.auth import client_address
from ml_api.http.endpoints import Endpoint, require_json
from ml_api.http.problems import Problem
from ml_api.serving.swap import SwapRefused
from ml_api.serving.workers import SwapBusy, WorkerGroup

__all__ = ["SwapRequest", "SwapResponse", "admin_endpoint"]

_log = logging.getLogger("ml_api.admin")

_SHOWN = 500  # characters of a path or a reason in a log line


class SwapRequest(BaseModel):
    """Which model to serve from now on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="The model file in the service's model directory, absolute or relative to it; its manifest "
            "lies beside it.",
        ),
    ]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="What the file must have.")] | None = (
        None
    )
    model: (
        Annotated[str, Field(min_length=1, description="Its name; default the trading model's.")] | None
    ) = None
    other_signature: Annotated[
        bool,
        Field(
            strict=True,
            description="Whether the model may have other features, another order of them, or other outputs than "
            "the one that is served.",
        ),
    ] = False


class Worker(BaseModel):
    """One worker of the service."""

    pid: int
    version: str


class SwapResponse(BaseModel):
    """What every worker serves now."""

    model: str
    version: str
    workers: list[Worker]


def admin_endpoint(group: WorkerGroup, default: str | None) -> Endpoint:
    """
    The endpoint of POST /admin/model.

    Args:
        default: The trading model's name; None where fixed rules decide and a name must be given.
    """

    async def swap(request: Request) -> Response:
        require_json(request)
        try:
            asked = SwapRequest.model_validate_json(await request.body())
        except ValidationError as error:
            items = error.errors(include_url=False, include_context=False, include_input=False)
            detail = [
                {"type": item["type"], "loc": ["body", *item["loc"]], "msg": item["msg"]} for item in items
            ]
            raise Problem(422, "malformed-body", detail) from None
        name = asked.model or default
        if name is None:
            raise Problem(422, "model-refused", "No model is served here; restart the service with one")
        audit = {
            "model": name,
            "file": asked.path[:_SHOWN],
            "client": client_address(request.scope),
            "other_signature": asked.other_signature,
        }
        _log.info("model swap asked for", extra=audit)
        try:
            workers = await group.swap(name, asked.path, asked.sha256, other_signature=asked.other_signature)
        except SwapRefused as error:
            _log.warning(
                "model swap refused", extra=audit | {"reason": str(error), "details": error.details[:_SHOWN]}
            )
            raise Problem(422, "model-refused", f"Nothing changed: {error}") from None
        except SwapBusy:
            _log.warning("model swap refused", extra=audit | {"reason": "another one is under way"})
            raise Problem(
                409, "swap-busy", "Another swap is under way; try again", {"Retry-After": "5"}
            ) from None
        _log.info(
            "model swapped",
            extra=audit | {"version": workers[0].version, "workers": len(workers)},
        )
        return JSONResponse(
            {
                "model": name,
                "version": workers[0].version,
                "workers": [{"pid": worker.pid, "version": worker.version} for worker in workers],
            }
        )

    return swap
