"""
Prometheus metrics: each row of the operator's monitoring table, and the model.

With several workers, `PROMETHEUS_MULTIPROC_DIR` makes every worker write its numbers to files there and any
worker answer for all of them; `ml-api serve` sets it up. The names are public: dashboards depend on them.
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

from ml_api.http.endpoints import Endpoint
from ml_api.http.refusals import REASONS
from ml_api.settings import METRICS_DIRECTORY

__all__ = ["Metrics", "metrics_endpoint"]

# The table's targets are 10 ms for a hit and 500 ms for a miss: both are edges of a bucket.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_MODEL_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)


class Metrics:
    """
    The instruments of one application. Label values are bounded: routes, statuses, assets and features are
    few.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        # Of several workers: the sum over those that live, or the least of them.
        livesum, livemin = (
            partial(Gauge, registry=registry, multiprocess_mode=mode) for mode in ("livesum", "livemin")
        )
        self.requests = counter("ml_service_requests", "Requests answered.", ("route", "method", "status"))
        self.response_seconds = histogram(
            "ml_service_response_seconds",
            "Time to the last byte of an answer; cache: hit, miss, or none where no key was sent.",
            ("route", "cache"),
            buckets=_SECONDS,
        )
        self.unauthorized = counter("ml_service_unauthorized", "Requests without a valid API key.")
        self.http_refusals = counter(
            "ml_service_http_refusals",
            "Requests and connections that the server refused or cut before the application had them, by reason.",
            ("reason",),
        )
        self.open_connections = livesum("ml_service_open_connections", "Open connections.")
        self.authentication_slowed = counter(
            "ml_service_authentication_slowed",
            "Failed authentications that were delayed, or refused unseen, because one address failed too often.",
        )
        self.cache_requests = counter(
            "ml_service_cache_requests",
            "Requests with an Idempotency-Key that were answered from the cache (hit) or decided (miss).",
            ("result",),
        )
        self.cache_refusals = counter(
            "ml_service_cache_refusals", "Keyed requests refused, by problem.", ("problem",)
        )
        self.cache_writes = counter(
            "ml_service_cache_writes",
            "Ends of keyed runs: stored, released (no 2xx), abandoned (cut off), lost (taken over), failed.",
            ("result",),
        )
        self.store_errors = counter(
            "ml_service_store_errors",
            "Store calls without an answer, by step and by what was done about it.",
            ("step", "action"),
        )
        self.redis_connection_errors = counter(
            "ml_service_redis_connection_errors",
            "Times that Redis gave no usable answer, to a request or to the monitor.",
        )
        self.redis_up = livemin(
            "ml_service_redis_up",
            "1 while Redis answers, 0 while it does not; with several workers, the worst of them.",
        )
        self.decision_seconds = histogram(
            "ml_service_decision_seconds",
            "Time to decide, from the body to the encoded answer.",
            buckets=_SECONDS,
        )
        self.model_seconds = histogram(
            "ml_service_model_seconds", "Time of one model call.", buckets=_MODEL_SECONDS
        )
        self.predictions = counter(
            "ml_service_predictions", "Decisions by asset and class.", ("asset", "action")
        )
        self.skipped = counter(
            "ml_service_skipped_assets", "Assets without a decision: too few or unusable candles.", ("asset",)
        )
        self.out_of_range = counter(
            "ml_service_feature_out_of_range",
            "Feature values outside the range seen in training, by feature: drift, once it is a habit.",
            ("feature",),
        )
        self.model_workers = livesum(
            "ml_service_model_workers", "Workers that serve this version of a model.", ("model", "version")
        )
        ProcessCollector(registry=registry)
        self._start_at_zero()
        _forget_the_dead()

    def _start_at_zero(self) -> None:
        """Have what is alerted on there from the start: a series that begins at 5 is, to `rate`, no increase."""
        for reason in REASONS:
            self.http_refusals.labels(reason)
        for result in ("hit", "miss"):
            self.cache_requests.labels(result)
        for result in ("stored", "failed"):
            self.cache_writes.labels(result)
        for action in ("refused", "bypassed"):
            self.store_errors.labels("acquire", action)

    def render(self) -> bytes:
        """The exposition text (Prometheus text format 0.0.4), of all workers where there are several."""
        if METRICS_DIRECTORY not in os.environ:
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        multiprocess.MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)


def metrics_endpoint(metrics: Metrics) -> Endpoint:
    """The endpoint of GET /metrics."""

    async def exposition(_: Request) -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return exposition


def _forget_the_dead() -> None:
    """Drop the live gauges of workers that died: whoever replaces them starts here."""
    directory = os.environ.get(METRICS_DIRECTORY)
    for file in Path(directory).glob("gauge_live*_*.db") if directory else ():
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
