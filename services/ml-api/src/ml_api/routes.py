"""The endpoints that are not health: thin, each the bridge from a request to one callable."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ml_api.decider import Decider
from ml_api.metrics import CONTENT_TYPE_LATEST, Metrics
from ml_api.problems import Problem

__all__ = ["Endpoint", "metrics_endpoint", "openapi_endpoint", "predict_endpoint", "require_json"]

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
"""What Starlette calls to answer a request."""


def predict_endpoint(decider: Decider) -> Endpoint:
    """The endpoint of POST /predict."""

    async def predict(request: Request) -> Response:
        require_json(request)
        return Response(decider.decide(await request.body()), media_type="application/json")

    return predict


def metrics_endpoint(metrics: Metrics) -> Endpoint:
    """The endpoint of GET /metrics."""

    async def exposition(_: Request) -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return exposition


def openapi_endpoint(document: Callable[[], dict[str, Any]]) -> Endpoint:
    """The endpoint of GET /openapi.json; *document* is asked once, when somebody first wants to see it."""

    @cache
    def rendered() -> bytes:
        return json.dumps(document(), separators=(",", ":")).encode()

    async def openapi(_: Request) -> Response:
        return Response(rendered(), media_type="application/json")

    return openapi


def require_json(request: Request) -> None:
    """Refuse (415) a body that says it is no plain JSON; one that says nothing is read as JSON."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem(415, "unsupported-media-type", "Send the body as application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "unsupported-media-type", "Send the body uncompressed")
