"""POST /admin/model: serve another model without a restart, in every worker or in none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml_api.http.endpoints import Endpoint, require_json
from ml_api.http.problems import Problem
from ml_api.serving.swap import SwapRefused
from ml_api.serving.workers import Peers, SwapBusy

__all__ = ["SwapRequest", "SwapResponse", "admin_endpoint"]

_log = logging.getLogger("ml_api.admin")


class SwapRequest(BaseModel):
    """Which model to serve from now on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[
        str, Field(min_length=1, description="The model file on the server; its manifest lies beside it.")
    ]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="What the file must have.")] | None = (
        None
    )
    model: (
        Annotated[str, Field(min_length=1, description="Its name; default the trading model's.")] | None
    ) = None


class Worker(BaseModel):
    """One worker of the service."""

    pid: int
    version: str


class SwapResponse(BaseModel):
    """What every worker serves now."""

    model: str
    version: str
    workers: list[Worker]


def admin_endpoint(peers: Peers, default: str | None) -> Endpoint:
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
        try:
            workers = await peers.swap(name, Path(asked.path), asked.sha256)
        except SwapRefused as error:
            _log.warning("model swap refused", extra={"model": name, "reason": str(error)})
            raise Problem(422, "model-refused", f"Nothing changed: {error}") from None
        except SwapBusy:
            raise Problem(
                409, "swap-busy", "Another swap is under way; try again", {"Retry-After": "5"}
            ) from None
        _log.info(
            "model swapped", extra={"model": name, "version": workers[0].version, "workers": len(workers)}
        )
        return JSONResponse(
            {
                "model": name,
                "version": workers[0].version,
                "workers": [{"pid": worker.pid, "version": worker.version} for worker in workers],
            }
        )

    return swap
