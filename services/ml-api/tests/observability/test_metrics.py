"""The metrics that alert rules use."""

from __future__ import annotations

import pytest

from idempotency.events import StoreFailed
from ml_api.observability.metrics import Metrics
from ml_api.observability.telemetry import CacheEvents


@pytest.mark.parametrize(
    "series",
    [
        'cache_requests_total{result="hit"}',
        'cache_requests_total{result="miss"}',
        'cache_writes_total{result="stored"}',
        'cache_writes_total{result="failed"}',
        'store_errors_total{action="refused",step="acquire"}',
        'store_errors_total{action="bypassed",step="acquire"}',
        "redis_connection_errors_total",
    ],
)
def test_counters_with_alerts_start_at_zero(series: str) -> None:
    assert f"ml_service_{series} 0.0" in Metrics().render().decode().splitlines()


@pytest.mark.parametrize(
    ("redis", "error", "counted"),
    [
        (True, "StoreUnavailable", 1),
        (True, "CorruptRecord", 0),  # Redis answered; its record is corrupt
        (False, "StoreUnavailable", 0),
    ],
)
def test_a_redis_failure_of_a_request_counts_as_a_connection_error(
    redis: bool, error: str, counted: int
) -> None:
    metrics = Metrics()
    hook = CacheEvents(metrics, redis=redis)
    hook(StoreFailed(operation="POST /predict", key_id="0", step="acquire", action="refused", error=error))
    assert f"ml_service_redis_connection_errors_total {counted:.1f}" in metrics.render().decode().splitlines()
