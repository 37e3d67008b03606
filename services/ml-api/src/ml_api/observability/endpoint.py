"""GET /metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ml_api.http.endpoints import Endpoint
from ml_api.observability.metrics import CONTENT_TYPE_LATEST, Metrics

__all__ = ["metrics_endpoint"]


def metrics_endpoint(metrics: Metrics) -> Endpoint:
    """The endpoint of GET /metrics."""

    async def exposition(_: Request) -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return exposition
