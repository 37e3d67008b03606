"""
GET /health and GET /ready: answered from memory, so that neither a slow store nor a slow model ever delays
them.

/ready stays 200 while Redis is down. Readiness that follows a shared dependency takes every replica out at
once and turns an outage of the cache into an outage of the service, keyless requests and all; the store's
state is in the body.
"""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml_api.http.endpoints import Endpoint

__all__ = ["ServedModel", "StoreMonitor", "health_endpoint", "ready_endpoint"]


class ServedModel(Protocol):
    """
    What health has to know of the model: its version, and whether it is one or the rules that stand in for
    it.
    """

    @property
    def version(self) -> str:
        """As answers call it."""
        ...

    @property
    def loaded(self) -> bool:
        """False while fixed rules decide."""
        ...


class StoreMonitor(Protocol):
    """What readiness reports of a store that may be away."""

    @property
    def up(self) -> bool | None:
        """The last answer; None before the first."""
        ...


def health_endpoint(model: ServedModel, schema_version: str) -> Endpoint:
    """
    The endpoint of GET /health. Each fact is given in both spellings: people read one, the .NET client the
    other.
    """

    async def health(_: Request) -> Response:
        return JSONResponse(
            {
                "status": "healthy",
                "model_loaded": model.loaded,
                "model_version": model.version,
                "schema_version": schema_version,
                "modelLoaded": model.loaded,
                "modelVersion": model.version,
                "schemaVersion": schema_version,
            }
        )

    return health


def ready_endpoint(model: ServedModel, store: str, monitor: StoreMonitor | None) -> Endpoint:
    """
    The endpoint of GET /ready: 200 once the worker serves.

    Args:
        store: Which store keeps the answers: "redis" or "sqlite".
        monitor: Whose last answer is reported; None for a store that cannot be away.
    """

    async def ready(_: Request) -> Response:
        up = monitor.up if monitor is not None else True
        return JSONResponse({"status": "ready", "modelVersion": model.version, "store": store, "storeUp": up})

    return ready
