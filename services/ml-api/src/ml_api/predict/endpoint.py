"""The HTTP endpoint of POST /predict, which calls the prediction service."""

from __future__ import annotations

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from ml_api.http.endpoints import Endpoint, require_json
from ml_api.predict.service import PredictionService

__all__ = ["predict_endpoint"]

_INLINE_BYTES = 65_536  # twice the usual body; a larger one is processed in a thread, not on the event loop


def predict_endpoint(predictions: PredictionService) -> Endpoint:
    """Return the endpoint of POST /predict."""

    async def predict(request: Request) -> Response:
        require_json(request)
        body = await request.body()
        if len(body) <= _INLINE_BYTES:
            answer = predictions.decide(body)
        else:
            answer = await to_thread.run_sync(predictions.decide, body, abandon_on_cancel=True)
        return Response(answer, media_type="application/json")

    return predict
