"""
The application: every part put together, once, from the settings.

Outermost first: CORS, the /v2 dialect of errors, telemetry, body limit, authentication, route, and on keyed routes
idempotency and the handler's deadline. So a wrong key learns nothing of the store, and a refused body never reaches it.
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
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from idempotency import EXPOSED_HEADERS, Hook, IdempotencyMiddleware, Policy, successes
from idempotency.hooks import OpenTelemetryHook
from ml_api.http.api_keys import ApiKeys
from ml_api.http.auth import Authentication, Guard, GuardedRoute, caller
from ml_api.http.cors import CORS
from ml_api.http.docs_page import docs_routes
from ml_api.http.endpoints import openapi_endpoint
from ml_api.http.failed_attempts import FailedAttempts
from ml_api.http.health import ServedModel, health_endpoint, ready_endpoint
from ml_api.http.json_fingerprint import json_fingerprint
from ml_api.http.limits import BodyLimit, HandlerDeadline
from ml_api.http.problems import Problem, render_http_exception, render_problem
from ml_api.http.rate_limit import RateLimit, TokenBuckets
from ml_api.http.refusals import EVENTS, ConnectionEvents
from ml_api.http.security_headers import SecurityHeaders
from ml_api.inference.errors import InferenceErrors
from ml_api.inference.requests import HEADER_LENGTH
from ml_api.inference.routes import inference_routes
from ml_api.observability.endpoint import metrics_endpoint
from ml_api.observability.metrics import Metrics
from ml_api.observability.telemetry import REQUEST_ID_HEADER, CacheEvents, Telemetry
from ml_api.observability.tracing import Tracing, start_tracing, tracing_wanted
from ml_api.predict.contract import SCHEMA_VERSION
from ml_api.predict.endpoint import predict_endpoint
from ml_api.predict.fingerprint import fingerprint_of
from ml_api.predict.service import PredictionService
from ml_api.serving.registry import ModelRegistry, load_models
from ml_api.settings import BASE_URL, PREFIX, RUNTIME_DIRECTORY, Settings, load_settings, unknown_variables
from ml_api.stores.backend import Backend, open_backend
from ml_api.stores.quota import AnswerQuota, StoredBytes
from ml_api.stores.unrecorded import RefuseUnrecorded, note_unrecorded

__all__ = ["create_app", "document_of", "inference_policy", "prediction_policy"]

_log = logging.getLogger("ml_api")


def create_app(settings: Settings | None = None, *, backend: Backend | None = None) -> Starlette:
    """
    Build the application; also a factory for `uvicorn --factory ml_api.app:create_app`.

    Args:
        settings: None reads the environment.
        backend: A store of the caller's own; None opens the one that *settings* name.
    Raises:
        SettingsError: The environment has mistakes; all are in the message.
        ModelUnusable: The model is missing, altered or not one.
        StoreUnusable: The store cannot be used as it is set up.
        TracingUnusable: Spans should be sent, and the libraries for it are not installed.
    """
    settings = settings or load_settings()
    metrics = Metrics()
    models = load_models(settings)
    predictions = (
        PredictionService(
            models.trading,
            metrics,
            version=settings.model_version,
            cap_orders=settings.cap_orders,
            explain_top=settings.explain_top,
        )
        if settings.only_models is None
        else None
    )
    served: ServedModel = predictions or _ModelsAlone(models)
    backend = backend or open_backend(settings, metrics)
    for name, slot in models.by_name.items():
        metrics.model_workers.labels(name, slot.current.info.version).set(1)
    admin = (
        _Admin(settings.admin_key.get_secret_value(), settings, models, metrics)
        if settings.admin_key
        else None
    )
    docs = docs_routes()

    tracer = start_tracing() if tracing_wanted() else None
    hooks: list[Hook] = [CacheEvents(metrics, redis=backend.kind == "redis")]
    if tracer is not None:
        hooks.append(OpenTelemetryHook())

    if settings.on_store_error == "refuse":
        hooks.append(note_unrecorded)
    buckets = TokenBuckets(settings.rate_limit) if settings.rate_limit else None
    rated = [Middleware(RateLimit, buckets=buckets)] if buckets is not None else []
    stored = StoredBytes(settings.quota_bytes, retention=float(settings.redis_ttl_seconds))
    failures = FailedAttempts()

    def keyed(policy: Policy) -> list[Middleware]:
        return [
            *rated,
            *(
                [Middleware(RefuseUnrecorded, retry_after=settings.lease)]
                if settings.on_store_error == "refuse"
                else []
            ),
            Middleware(
                IdempotencyMiddleware,
                store=backend.store,
                tenant=caller,
                policy=policy,
                hooks=hooks,
            ),
            *([Middleware(AnswerQuota, stored=stored)] if settings.quota_bytes else []),
            Middleware(HandlerDeadline, seconds=settings.handler_timeout),
        ]

    def guard(keys: ApiKeys) -> Guard:
        return partial(
            Authentication,
            keys=keys,
            failures=failures,
            refused=metrics.unauthorized.inc,
            slowed=metrics.authentication_slowed.inc,
        )

    callers = guard(
        ApiKeys(
            single=settings.api_key.get_secret_value() if settings.api_key else None,
            file=settings.api_keys_file,
        )
    )
    app = Starlette(
        routes=[
            *(
                [
                    GuardedRoute(
                        "/predict",
                        predict_endpoint(predictions),
                        methods=["POST"],
                        guard=callers,
                        middleware=keyed(prediction_policy(settings)),
                    )
                ]
                if predictions is not None
                else []
            ),
            *inference_routes(
                models.by_name, metrics, guard=callers, keyed=keyed(inference_policy(settings))
            ),
            Route("/health", health_endpoint(served, SCHEMA_VERSION)),
            Route("/ready", ready_endpoint(served, backend.kind, backend.monitor)),
            Route("/metrics", metrics_endpoint(metrics)),
            Route("/openapi.json", openapi_endpoint(lambda: document_of(settings))),
            *docs,
            *((admin.route(guard(admin.keys)),) if admin else ()),
        ],
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(
                CORS,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST"],
                allow_headers=[
                    "X-API-Key",
                    "Content-Type",
                    "Idempotency-Key",
                    REQUEST_ID_HEADER,
                    "traceparent",
                ],
                expose_headers=[*EXPOSED_HEADERS, REQUEST_ID_HEADER],
            ),
            *([Middleware(Tracing, tracer=tracer)] if tracer is not None else ()),
            Middleware(InferenceErrors),
            Middleware(Telemetry, metrics=metrics),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout=settings.body_timeout),
        ],
        exception_handlers={Problem: render_problem, HTTPException: render_http_exception},
        lifespan=_Lifespan(backend, served, models, settings, admin, metrics),
    )
    # A redirect would name whatever Host was sent, and clients send the key and the body there.
    app.router.redirect_slashes = False
    # A path without a route needs a key too: a stranger does not learn which paths there are.
    app.router.default = callers(_not_found)
    return app


async def _not_found(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise HTTPException(404)


def prediction_policy(settings: Settings) -> Policy:
    """What is promised for POST /predict: at least once, 2xx alone kept, duplicates wait for each other."""
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
    """The same for the Open Inference Protocol, where a request is its tensors: all of it counts but its `id`."""
    fingerprint = json_fingerprint(ignoring="id", length_header=HEADER_LENGTH)
    return replace(prediction_policy(settings), fingerprint=fingerprint)


def document_of(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of a service with these settings."""
    from ml_api.openapi import openapi_document  # its schemas take time that a start should not

    return openapi_document(
        prediction_policy(settings) if settings.only_models is None else None,
        inference_policy(settings),
        admin=settings.admin_key is not None,
    )


class _ModelsAlone:
    """What `/health` says where nothing trades: the versions of all models."""

    loaded = True

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models

    @property
    def version(self) -> str:
        """The version of the one model, or each with its name."""
        slots = list(self._models.by_name.values())
        return slots[0].current.info.version if len(slots) == 1 else self._models.described


class _Admin:
    """What POST /admin/model needs; there is none without a key of its own."""

    def __init__(self, key: str, settings: Settings, models: ModelRegistry, metrics: Metrics) -> None:
        from ml_api.serving.admin import admin_endpoint
        from ml_api.serving.model_files import ModelDirectory
        from ml_api.serving.swap import Participant
        from ml_api.serving.workers import WorkerGroup

        def swapped(name: str, old: str, new: str) -> None:
            metrics.model_workers.labels(name, old).set(0)
            metrics.model_workers.labels(name, new).set(1)

        directory = settings.admin_model_dir or (settings.model_path.parent if settings.model_path else None)
        participant = Participant(
            models.by_name,
            directory=ModelDirectory(directory, settings.max_model_bytes) if directory is not None else None,
            check=models.check,
            swapped=swapped,
        )
        # Without `ml-api serve` there is one worker, which meets itself.
        meeting = os.environ.get(RUNTIME_DIRECTORY) or tempfile.mkdtemp(prefix="ml-api-")
        self.keys = ApiKeys(single=key)
        self.workers = WorkerGroup(Path(meeting), participant, timeout=settings.admin_timeout)
        default = models.trading.current.info.name if models.trading is not None else None
        self._endpoint = admin_endpoint(self.workers, default)

    def route(self, guard: Guard) -> Route:
        """The route, behind a guard that knows the admin key."""
        return GuardedRoute("/admin/model", self._endpoint, methods=["POST"], guard=guard)


class _Lifespan:
    """The lifespan: what starts before the first request and ends after the last."""

    def __init__(
        self,
        backend: Backend,
        served: ServedModel,
        models: ModelRegistry,
        settings: Settings,
        admin: _Admin | None,
        metrics: Metrics,
    ) -> None:
        self._backend, self._served, self._models = backend, served, models
        self._settings, self._admin = settings, admin
        self._events = ConnectionEvents(
            lambda reason: metrics.http_refusals.labels(reason).inc(), metrics.open_connections.inc
        )

    @contextlib.asynccontextmanager
    async def __call__(self, _: Starlette) -> AsyncIterator[dict[str, object]]:
        self._say_what_is_served()
        monitor = self._backend.monitor
        monitoring = asyncio.create_task(monitor.run()) if monitor is not None else None
        try:
            async with self._admin.workers.joined() if self._admin else contextlib.nullcontext():
                yield {EVENTS: self._events}
        finally:
            if monitoring is not None:
                monitoring.cancel()
                await asyncio.gather(monitoring, return_exceptions=True)
            await self._backend.close()

    def _say_what_is_served(self) -> None:
        settings = self._settings
        _log.info(
            "ml-api serving",
            extra={
                "model": self._served.version,
                "model_loaded": self._served.loaded,
                "store": self._backend.kind,
                "promise": prediction_policy(settings).promise,
                "on_store_error": settings.on_store_error,
            },
        )
        base = os.environ.get(BASE_URL, "")
        for model, slot in self._models.by_name.items():
            url = f"{base}/v2/models/{quote(model, safe='')}"
            _log.info(
                "model served", extra={"model": model, "version": slot.current.info.version, "url": url}
            )
        _log.info("what may be asked is described here", extra={"url": f"{base}/docs"})
        for sentence in unknown_variables():
            _log.warning(sentence)
        if not self._served.loaded:
            _log.warning("no model file: fixed rules decide, as %sRULE_FALLBACK asks", PREFIX)
        if (name := settings.unused) is not None:
            _log.warning("%s is set and not used: %sREDIS_ENABLED is not true", name, PREFIX)
        if settings.origins == ("*",):
            _log.warning(f"{PREFIX}ALLOWED_ORIGIN is *: pages of any origin may call this service")
        if settings.api_key is not None and len(settings.api_key.get_secret_value()) < 16:
            _log.warning(f"{PREFIX}API_KEY is short; openssl rand -hex 32 makes a better one")
