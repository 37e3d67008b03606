"""
Prometheus metrics of requests, the store and the model.

With several workers, `ml-api serve` sets `PROMETHEUS_MULTIPROC_DIR`: every worker writes its numbers to files in that
directory, and any worker reports the numbers of all. The names are public, because dashboards depend on them.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)
from starlette.requests import Request
from starlette.responses import Response

from ml_api.http.connection_refusals import REASONS
from ml_api.http.endpoints import Endpoint
from ml_api.settings import METRICS_DIRECTORY

__all__ = ["Metrics", "metrics_endpoint"]

# The operator's targets are 10 ms for a hit and 500 ms for a miss; both are bounds of a bucket.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_MODEL_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)


class Metrics:
    """The metrics of one application. Labels have few values: routes, statuses, assets and features."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        # With several workers: the sum over the running workers, or the minimum.
        livesum, livemin = (
            partial(Gauge, registry=registry, multiprocess_mode=mode) for mode in ("livesum", "livemin")
        )
        self.requests = counter("ml_service_requests", "Requests answered.", ("route", "method", "status"))
        self.response_seconds = histogram(
            "ml_service_response_seconds",
            "Time to the last byte of an answer; cache is hit, miss, or none for requests without a key.",
            ("route", "cache"),
            buckets=_SECONDS,
        )
        self.unauthorized = counter("ml_service_unauthorized", "Requests without a valid API key.")
        self.http_refusals = counter(
            "ml_service_http_refusals",
            "Requests and connections that the server refused or cut before the application got them, by reason.",
            ("reason",),
        )
        self.open_connections = livesum("ml_service_open_connections", "Open connections.")
        self.authentication_slowed = counter(
            "ml_service_authentication_slowed",
            "Failed authentications that were delayed, or refused without checking the key, because of many failures.",
        )
        self.cache_requests = counter(
            "ml_service_cache_requests",
            "Requests with an Idempotency-Key whose answer was replayed (hit) or computed (miss).",
            ("result",),
        )
        self.cache_refusals = counter(
            "ml_service_cache_refusals", "Refused requests with an Idempotency-Key, by problem.", ("problem",)
        )
        self.cache_writes = counter(
            "ml_service_cache_writes",
            "Results of runs with an Idempotency-Key: stored, released (not 2xx), abandoned (cancelled), lost (taken "
            "over), failed (not recorded).",
            ("result",),
        )
        self.store_errors = counter(
            "ml_service_store_errors",
            "Failed store calls, by step and by the action that followed.",
            ("step", "action"),
        )
        self.redis_connection_errors = counter(
            "ml_service_redis_connection_errors",
            "Calls of requests or of the monitor to which Redis gave no usable answer.",
        )
        self.redis_up = livemin(
            "ml_service_redis_up",
            "1 while Redis answers, 0 while it does not; with several workers, the minimum.",
        )
        self.decision_seconds = histogram(
            "ml_service_decision_seconds",
            "Time of a decision, from the body to the encoded answer.",
            buckets=_SECONDS,
        )
        self.model_seconds = histogram(
            "ml_service_model_seconds",
            "Time to predict all rows of one request; under /v2 also to encode the outputs.",
            buckets=_MODEL_SECONDS,
        )
        self.predictions = counter(
            "ml_service_predictions", "Decisions by asset and class.", ("asset", "action")
        )
        self.skipped = counter(
            "ml_service_skipped_assets", "Assets without a decision: too few or unusable candles.", ("asset",)
        )
        self.out_of_range = counter(
            "ml_service_feature_out_of_range",
            "Feature values outside the training range, by feature; many of them mean drift.",
            ("feature",),
        )
        self.model_workers = livesum(
            "ml_service_model_workers", "Workers that serve this version of a model.", ("model", "version")
        )
        ProcessCollector(registry=registry)
        self._start_at_zero()
        _forget_the_dead()

    def _start_at_zero(self) -> None:
        """Start the series of alerts at 0: if a series begins with a larger value, `rate` sees no increase."""
        for reason in REASONS:
            self.http_refusals.labels(reason)
        for result in ("hit", "miss"):
            self.cache_requests.labels(result)
        for result in ("stored", "failed"):
            self.cache_writes.labels(result)
        for action in ("refused", "bypassed"):
            self.store_errors.labels("acquire", action)

    def render(self) -> bytes:
        """Return the metrics of all workers in the Prometheus text format 0.0.4."""
        if METRICS_DIRECTORY not in os.environ:
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        multiprocess.MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)


def metrics_endpoint(metrics: Metrics) -> Endpoint:
    """Return the endpoint of GET /metrics."""

    async def exposition(_: Request) -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return exposition


def _forget_the_dead() -> None:
    """Remove the live gauges of dead workers; the worker that replaces a dead one calls this at its start."""
    directory = os.environ.get(METRICS_DIRECTORY)
    for file in Path(directory).glob("gauge_live*_*.db") if directory else ():
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
