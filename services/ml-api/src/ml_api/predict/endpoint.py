"""POST /predict over HTTP: a thin bridge from a request to the prediction service."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ml_api.http.endpoints import Endpoint, require_json
from ml_api.predict.service import Decider

__all__ = ["predict_endpoint"]


def predict_endpoint(decider: Decider) -> Endpoint:
    """The endpoint of POST /predict."""

    async def predict(request: Request) -> Response:
        require_json(request)
        return Response(decider.decide(await request.body()), media_type="application/json")

    return predict
