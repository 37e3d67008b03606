"""
Builds the application from the settings.

The layers, outermost first: security headers, CORS, tracing, error format of /v2, telemetry, body limit; on guarded
routes authentication; on keyed routes then rate limit, idempotency and quota. So a request with a wrong API key, or
with a body that is too large, never reaches the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from idempotency import EXPOSED_HEADERS, Hook, IdempotencyMiddleware, Policy, successes
from idempotency.hooks import OpenTelemetryHook
from ml_api.http.api_keys import ApiKeys
from ml_api.http.auth import Authentication, GuardedRoute, caller
from ml_api.http.browser_headers import CORS, SecurityHeaders
from ml_api.http.connection_refusals import EVENTS, ConnectionEvents
from ml_api.http.docs_page import docs_routes
from ml_api.http.endpoints import Endpoint, openapi_endpoint
from ml_api.http.failed_attempts import FailedAttempts
from ml_api.http.health import health_endpoint, ready_endpoint
from ml_api.http.json_fingerprint import json_fingerprint
from ml_api.http.limits import BodyLimit, limit_threads
from ml_api.http.problems import Problem, render_http_exception, render_problem
from ml_api.http.rate_limit import RateLimit, TokenBuckets
from ml_api.inference.errors import InferenceErrors
from ml_api.inference.requests import HEADER_LENGTH
from ml_api.inference.routes import inference_routes
from ml_api.observability.metrics import Metrics, metrics_endpoint
from ml_api.observability.telemetry import REQUEST_ID_HEADER, CacheEvents, Telemetry
from ml_api.observability.tracing import Tracing, start_tracing, tracing_wanted
from ml_api.predict.contract import SCHEMA_VERSION
from ml_api.predict.fingerprint import fingerprint_of
from ml_api.predict.service import PredictionService
from ml_api.serving.registry import ModelRegistry, load_models
from ml_api.settings import BASE_URL, PREFIX, RUNTIME_DIRECTORY, Settings, load_settings, unknown_variables
from ml_api.stores.backend import Backend, open_backend
from ml_api.stores.quota import AnswerQuota, StoredBytes
from ml_api.stores.unrecorded import RefuseUnrecorded, note_unrecorded

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from ml_api.serving.workers import WorkerGroup

__all__ = ["create_app", "document_of", "inference_policy", "prediction_policy"]

_log = logging.getLogger("ml_api")

_ALLOWED_HEADERS = ("X-API-Key", "Content-Type", "Idempotency-Key", REQUEST_ID_HEADER, "traceparent")


def create_app(settings: Settings | None = None, *, backend: Backend | None = None) -> Starlette:
    """
    Build the application; also a factory for `uvicorn --factory ml_api.app:create_app`.

    Args:
        settings: Default: read from the environment.
        backend: The store to use. Default: open the one that *settings* name.
    Raises:
        SettingsError: The environment has mistakes; the message lists them all.
        ModelUnusable: A model file is missing, was changed, or is not a model.
        StoreUnusable: The store cannot be used with these settings.
        TracingUnusable: Tracing is configured, but its libraries are not installed.
    """
    settings = settings or load_settings()
    metrics = Metrics()
    models = load_models(settings)
    predictions = None
    if settings.only_models is None:
        predictions = PredictionService(
            models.trading,
            metrics,
            version=settings.model_version,
            cap_orders=settings.cap_orders,
            explain_top=settings.explain_top,
            timeout=settings.handler_timeout,
        )
    backend = backend or open_backend(settings, metrics)
    for name, slot in models.by_name.items():
        metrics.model_workers.labels(name, slot.current.info.version).set(1)
    tracer = start_tracing() if tracing_wanted() else None
    refuse_unrecorded = settings.on_store_error == "refuse"
    hooks: list[Hook] = [CacheEvents(metrics, redis=backend.kind == "redis")]
    if tracer is not None:
        hooks.append(OpenTelemetryHook())
    if refuse_unrecorded:
        hooks.append(note_unrecorded)
    model_loaded = predictions is None or models.trading is not None  # else fixed rules decide

    def version() -> str:
        return predictions.version if predictions is not None else models.version

    events = ConnectionEvents(
        lambda reason: metrics.http_refusals.labels(reason).inc(), metrics.open_connections.inc
    )
    buckets = TokenBuckets(settings.rate_limit)
    stored = StoredBytes(settings.quota_bytes, retention=float(settings.redis_ttl_seconds))

    def keyed(policy: Policy) -> list[Middleware]:
        idempotency = Middleware(
            IdempotencyMiddleware, store=backend.store, tenant=caller, policy=policy, hooks=hooks
        )
        layers = [
            (settings.rate_limit > 0, Middleware(RateLimit, buckets=buckets)),
            (refuse_unrecorded, Middleware(RefuseUnrecorded, retry_after=settings.lease)),
            (True, idempotency),
            (settings.quota_bytes > 0, Middleware(AnswerQuota, stored=stored)),
        ]
        return [layer for wanted, layer in layers if wanted]

    guard = partial(
        Authentication,
        failures=FailedAttempts(),
        refused=metrics.unauthorized.inc,
        slowed=metrics.authentication_slowed.inc,
    )
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    callers = partial(guard, keys=ApiKeys(single=api_key, file=settings.api_keys_file))
    routes = [
        *inference_routes(
            models.by_name,
            metrics,
            guard=callers,
            keyed=keyed(inference_policy(settings)),
            timeout=settings.handler_timeout,
        ),
        Route("/health", health_endpoint(version, loaded=model_loaded, schema_version=SCHEMA_VERSION)),
        Route("/ready", ready_endpoint(version, store=backend.kind, store_up=lambda: backend.up)),
        Route("/metrics", metrics_endpoint(metrics)),
        Route("/openapi.json", openapi_endpoint(lambda: document_of(settings))),
        *docs_routes(),
    ]
    if predictions is not None:  # the first route, because most requests are for it
        layers = keyed(prediction_policy(settings))
        routes.insert(
            0,
            GuardedRoute("/predict", predictions.answer, methods=["POST"], guard=callers, middleware=layers),
        )
    workers = None
    if settings.admin_key is not None:
        admins = partial(guard, keys=ApiKeys(single=settings.admin_key.get_secret_value()))
        workers, endpoint = _swap_endpoint(settings, models, metrics)
        routes.append(GuardedRoute("/admin/model", endpoint, methods=["POST"], guard=admins))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, object]]:
        limit_threads()
        _log_start(settings, models, version=version(), loaded=model_loaded, store=backend.kind)
        monitoring = asyncio.create_task(backend.monitor.run()) if backend.monitor is not None else None
        try:
            async with workers.joined() if workers is not None else contextlib.nullcontext():
                yield {EVENTS: events}
        finally:
            if monitoring is not None:
                monitoring.cancel()
                await asyncio.gather(monitoring, return_exceptions=True)
            await backend.store.aclose()

    app = Starlette(
        routes=routes,
        middleware=_layers_of_every_request(settings, metrics, tracer),
        exception_handlers={Problem: render_problem, HTTPException: render_http_exception},
        lifespan=lifespan,
    )
    # A redirect would lead to the host in the request's Host header, and clients would send key and body there.
    app.router.redirect_slashes = False
    # A path without a route needs a key too, so that strangers do not learn which paths exist.
    app.router.default = callers(_not_found)
    return app


def _layers_of_every_request(settings: Settings, metrics: Metrics, tracer: Tracer | None) -> list[Middleware]:
    """Return the layers around all routes, outermost first."""
    return [
        Middleware(SecurityHeaders),
        Middleware(
            CORS,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=_ALLOWED_HEADERS,
            expose_headers=[*EXPOSED_HEADERS, REQUEST_ID_HEADER],
        ),
        *([Middleware(Tracing, tracer=tracer)] if tracer is not None else ()),
        Middleware(InferenceErrors),
        Middleware(Telemetry, metrics=metrics),
        Middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout=settings.body_timeout),
    ]


async def _not_found(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise HTTPException(404)


def prediction_policy(settings: Settings) -> Policy:
    """Return the policy of POST /predict: at least once, only 2xx answers are kept, duplicates wait for the first."""
    return Policy(
        methods=frozenset({"POST"}),
        fingerprint=fingerprint_of(settings.fingerprint),
        keep=successes,
        retention=float(settings.redis_ttl_seconds),
        wait=settings.wait,
        lease=settings.lease,
        on_store_error=settings.on_store_error,
        max_request_bytes=settings.max_body_bytes,
        body_timeout=settings.body_timeout,
    )


def inference_policy(settings: Settings) -> Policy:
    """Return the policy of the Open Inference Protocol; the fingerprint covers the whole request but its `id`."""
    fingerprint = json_fingerprint(ignoring="id", length_header=HEADER_LENGTH)
    return replace(prediction_policy(settings), fingerprint=fingerprint)


def document_of(settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI document of a service with these settings."""
    from ml_api.openapi import openapi_document  # not at the top: its schemas would make the start slower

    return openapi_document(
        prediction_policy(settings) if settings.only_models is None else None,
        inference_policy(settings),
        admin=settings.admin_key is not None,
    )


def _swap_endpoint(
    settings: Settings, models: ModelRegistry, metrics: Metrics
) -> tuple[WorkerGroup, Endpoint]:
    """Return the group of workers, which swaps models together, and the endpoint that starts a swap."""
    from ml_api.serving.admin import admin_endpoint
    from ml_api.serving.model_files import ModelDirectory
    from ml_api.serving.swap import Participant
    from ml_api.serving.workers import WorkerGroup

    def swapped(name: str, old: str, new: str) -> None:
        metrics.model_workers.labels(name, old).set(0)
        metrics.model_workers.labels(name, new).set(1)

    directory = settings.admin_model_dir or _model_directory(settings)
    participant = Participant(
        models.by_name,
        directory=ModelDirectory(directory, settings.max_model_bytes) if directory is not None else None,
        check=models.check,
        swapped=swapped,
    )
    # Without `ml-api serve`, this process is the only worker of its group.
    shared = os.environ.get(RUNTIME_DIRECTORY) or tempfile.mkdtemp(prefix="ml-api-")
    workers = WorkerGroup(Path(shared), participant, timeout=settings.admin_timeout)
    return workers, admin_endpoint(workers, models)


def _model_directory(settings: Settings) -> Path | None:
    """Return the directory of the model files in *settings*; None if the package's model is served."""
    named = settings.only_models or settings.model_path
    return named if named is None or named.is_dir() else named.parent


def _log_start(settings: Settings, models: ModelRegistry, *, version: str, loaded: bool, store: str) -> None:
    """Log the served models, and warn about questionable settings."""
    _log.info(
        "ml-api serving",
        extra={
            "model": version,
            "model_loaded": loaded,
            "store": store,
            "promise": prediction_policy(settings).promise,
            "on_store_error": settings.on_store_error,
        },
    )
    base = os.environ.get(BASE_URL, "")
    for model, slot in models.by_name.items():
        url = f"{base}/v2/models/{quote(model, safe='')}"
        _log.info("model served", extra={"model": model, "version": slot.current.info.version, "url": url})
    _log.info("API documentation", extra={"url": f"{base}/docs"})
    for sentence in unknown_variables():
        _log.warning(sentence)
    if not loaded:
        _log.warning("no model file: fixed rules decide, because %sRULE_FALLBACK is set", PREFIX)
    if (name := settings.unused) is not None:
        _log.warning("%s is set but not used: set %sREDIS_ENABLED to true, or unset it", name, PREFIX)
    if "*" in settings.origins:
        _log.warning(f"{PREFIX}ALLOWED_ORIGIN is *: pages of any origin may call this service; name yours")
    if settings.api_key is not None and len(settings.api_key.get_secret_value()) < 16:
        _log.warning(f"{PREFIX}API_KEY is short: make a longer one with `openssl rand -hex 32`")
