"""
GET /health and GET /ready: answered from memory, so that neither a slow store nor a slow model ever delays
them.

/ready stays 200 while Redis is down. Readiness that follows a shared dependency takes every replica out at
once and turns an outage of the cache into an outage of the service, keyless requests and all; the store's
state is in the body.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml_api.http.endpoints import Endpoint

__all__ = ["health_endpoint", "ready_endpoint"]


def health_endpoint(version: Callable[[], str], *, loaded: bool, schema_version: str) -> Endpoint:
    """
    The endpoint of GET /health. Each fact is given in both spellings: people read one, the .NET client the
    other.

    Args:
        version: Says which model answers now.
        loaded: False where fixed rules decide instead of a model.
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
    The endpoint of GET /ready: 200 once the worker serves.

    Args:
        store: Which store keeps the answers: "redis" or "sqlite".
        store_up: Says whether it answered the last time; None before the first.
    """

    async def ready(_: Request) -> Response:
        members = {"status": "ready", "modelVersion": version(), "store": store, "storeUp": store_up()}
        return JSONResponse(members)

    return ready
