"""
GET /health and GET /ready: answered from memory, so that no slow store or model delays them.

/ready stays 200 while Redis is down, and reports the store's state in its body. Otherwise an outage of the shared Redis
would take every replica out of service at once, also for requests without an idempotency key.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml_api.http.endpoints import Endpoint

__all__ = ["health_endpoint", "ready_endpoint"]


def health_endpoint(version: Callable[[], str], *, loaded: bool, schema_version: str) -> Endpoint:
    """
    Return the endpoint of GET /health. Members have snake_case names for people, and camelCase for the .NET client.

    Args:
        version: Returns the version of the model that is served now.
        loaded: False if fixed rules decide instead of a model.
    """

    async def health(_: Request) -> Response:
        model = version()
        return JSONResponse(
            {
                "status": "healthy",
                "model_loaded": loaded,
                "model_version": model,
                "schema_version": schema_version,
                "modelLoaded": loaded,
                "modelVersion": model,
                "schemaVersion": schema_version,
            }
        )

    return health


def ready_endpoint(
    version: Callable[[], str], *, store: str, store_up: Callable[[], bool | None]
) -> Endpoint:
    """
    Return the endpoint of GET /ready: 200 as soon as the worker serves.

    Args:
        store: The store of the answers: "redis" or "sqlite".
        store_up: Returns whether the store answered the last call; None before the first call.
    """

    async def ready(_: Request) -> Response:
        members = {"status": "ready", "modelVersion": version(), "store": store, "storeUp": store_up()}
        return JSONResponse(members)

    return ready
