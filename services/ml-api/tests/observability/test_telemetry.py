"""The log lines and metrics of one request, and of each event of the idempotency middleware."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from idempotency.events import Claimed, ClaimLost, Event, Refused, Replayed, Settled, StoreFailed
from ml_api.observability.logs import request_id, trace_id
from ml_api.observability.metrics import Metrics
from ml_api.observability.telemetry import CacheEvents, Telemetry

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Route:
    """A route with the only attribute that telemetry reads."""

    def __init__(self, path: str) -> None:
        self.path = path


async def call(
    app: Any,
    metrics: Metrics,
    *,
    method: str = "POST",
    route: str | None = "/predict",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": method, "path": "/", "headers": list(headers)}
    if route is not None:
        scope["route"] = Route(route)
    await Telemetry(app, metrics=metrics)(scope, None, send)  # type: ignore[arg-type]
    return sent


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("fine")(scope, receive, send)


def counted(metrics: Metrics, name: str) -> list[str]:
    """The samples of one counter that are above zero."""
    lines = metrics.render().decode().splitlines()
    return [line for line in lines if line.startswith(f"ml_service_{name}_total") and line[-3:] != "0.0"]


@pytest.mark.parametrize(
    ("sent", "trace"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-of-a-later-version", TRACE),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", "outer"),
        (f"00-{TRACE}-b7ad6b7169203331-01x", "outer"),
        (f"00-{TRACE}0-b7ad6b7169203331-01", "outer"),
        (f"x00-{TRACE}-b7ad6b7169203331-01", "outer"),
        ("", "outer"),
    ],
)
async def test_a_valid_traceparent_sets_the_trace_id_during_the_request(sent: str, trace: str) -> None:
    seen: list[tuple[str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((request_id.get(), trace_id.get()))
        await fine(scope, receive, send)

    outer, before = trace_id.set("outer"), request_id.set("before")
    try:
        await call(app, Metrics(), headers=[(b"traceparent", sent.encode()), (b"x-request-id", b"r-1")])
        assert seen == [("r-1", trace)]
        assert (request_id.get(), trace_id.get()) == ("before", "outer")
    finally:
        trace_id.reset(outer)
        request_id.reset(before)


@pytest.mark.parametrize(
    ("id_", "kept"), [("a" * 128, True), ("a" * 129, False), ("a\n", False), ("", False)]
)
async def test_a_printable_request_id_of_at_most_128_characters_is_kept(id_: str, kept: bool) -> None:
    start = (await call(fine, Metrics(), headers=[(b"x-request-id", id_.encode())]))[0]
    given = dict(start["headers"])[b"x-request-id"].decode()
    assert (given == id_) is kept
    assert given


@pytest.mark.parametrize(
    ("method", "route", "labels"),
    [
        ("POST", "/predict", 'method="POST",route="/predict",status="200"'),
        ("BREW", "/predict", 'method="other",route="/predict",status="200"'),
        ("GET", None, 'method="GET",route="other",status="200"'),
    ],
)
async def test_unknown_methods_and_routes_are_counted_as_other(
    method: str, route: str | None, labels: str
) -> None:
    metrics = Metrics()
    await call(fine, metrics, method=method, route=route)
    assert counted(metrics, "requests") == [f"ml_service_requests_total{{{labels}}} 1.0"]


@pytest.mark.parametrize(
    ("route", "keyed", "replayed", "cache", "level"),
    [
        ("/predict", False, False, "none", logging.INFO),
        ("/predict", True, False, "miss", logging.INFO),
        ("/predict", True, True, "hit", logging.DEBUG),  # the cache has logged it already
        *((path, False, False, "none", logging.DEBUG) for path in ("/health", "/ready", "/metrics")),
    ],
)
async def test_a_request_line_has_method_route_status_and_cache_and_frequent_ones_are_debug(
    caplog: pytest.LogCaptureFixture, route: str, keyed: bool, replayed: bool, cache: str, level: int
) -> None:
    caplog.set_level(logging.DEBUG, "ml_api.request")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"Idempotency-Replayed": "true"} if replayed else {}
        await PlainTextResponse("fine", headers=headers)(scope, receive, send)

    metrics = Metrics()
    await call(app, metrics, route=route, headers=[(b"idempotency-key", b"k")] if keyed else [])
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (level, "request")
    said = record.__dict__
    assert (said["method"], said["route"], said["status"], said["cache"]) == ("POST", route, 200, cache)
    assert 0 <= said["duration_ms"] < 60_000
    timed = f'ml_service_response_seconds_count{{cache="{cache}",route="{route}"}} 1.0'
    assert timed in metrics.render().decode().splitlines()


async def test_request_duration_is_logged_in_milliseconds_and_counted_in_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "ml_api.request")
    clock = iter([1000.0, 1000.2501234])
    monkeypatch.setattr("ml_api.observability.telemetry.time.perf_counter", lambda: next(clock))
    metrics = Metrics()
    await call(fine, metrics)
    assert caplog.records[0].__dict__["duration_ms"] == 250.123
    total = 'ml_service_response_seconds_sum{cache="none",route="/predict"} '
    (line,) = (line for line in metrics.render().decode().splitlines() if line.startswith(total))
    assert float(line.removeprefix(total)) == pytest.approx(0.2501234)


async def test_an_answer_that_fails_midway_raises_and_is_counted_with_its_status() -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 206, "headers": []})
        raise RuntimeError("in the middle")

    metrics = Metrics()
    with pytest.raises(RuntimeError, match="in the middle"):
        await call(half, metrics)
    (line,) = counted(metrics, "requests")
    assert 'status="206"' in line


async def test_scopes_other_than_http_are_passed_unchanged() -> None:
    passed: list[object] = []

    async def app(*call: object) -> None:
        passed.extend(call)

    lifespan, metrics = {"type": "lifespan"}, Metrics()
    await Telemetry(app, metrics=metrics)(lifespan, 1, 2)  # type: ignore[arg-type]
    assert passed == [lifespan, 1, 2]
    assert counted(metrics, "requests") == []


OWN: dict[str, Any] = {"operation": "POST /predict", "key_id": "ab"}


@pytest.mark.parametrize(
    ("event", "level", "text", "fields", "series"),
    [
        (
            Replayed(age=0.12345, waited=0.0, **OWN),
            "INFO",
            "Cache HIT",
            {"age_s": 0.123},
            'cache_requests_total{result="hit"}',
        ),
        (
            Claimed(attempt=2, waited=0.0, **OWN),
            "INFO",
            "Cache MISS",
            {"attempt": 2},
            'cache_requests_total{result="miss"}',
        ),
        (
            Settled(attempt=1, result="kept", duration=0.25, **OWN),
            "INFO",
            "Cache STORE",
            {"run_ms": 250.0},
            'cache_writes_total{result="stored"}',
        ),
        (
            Settled(attempt=1, result="released", duration=0.25, **OWN),
            "INFO",
            "Cache released",
            {"run_ms": 250.0},
            'cache_writes_total{result="released"}',
        ),
        (
            Refused(problem="key-reused", status=422, **OWN),
            "INFO",
            "Cache REFUSED",
            {"problem": "key-reused"},
            'cache_refusals_total{problem="key-reused"}',
        ),
        (ClaimLost(attempt=1, **OWN), "ERROR", "ERROR claim lost", {}, 'cache_writes_total{result="lost"}'),
        (
            StoreFailed(step="acquire", action="refused", error="E", reason="why", **OWN),
            "ERROR",
            "ERROR idempotency store failed, refused",
            {"step": "acquire", "error": "E", "reason": "why"},
            'store_errors_total{action="refused",step="acquire"}',
        ),
        (
            StoreFailed(step="complete", action="unrecorded", error="E", **OWN),
            "ERROR",
            "ERROR idempotency store failed, unrecorded",
            {"step": "complete", "error": "E", "reason": ""},
            'cache_writes_total{result="failed"}',
        ),
    ],
)
def test_each_cache_event_is_logged_and_counted(
    caplog: pytest.LogCaptureFixture,
    event: Event,
    level: str,
    text: str,
    fields: dict[str, object],
    series: str,
) -> None:
    caplog.set_level("DEBUG", "ml_api.cache")
    metrics = Metrics()
    CacheEvents(metrics, redis=False)(event)
    (record,) = caplog.records
    assert record.levelname == level
    assert record.getMessage().startswith(text)
    assert (vars(record) | {"key_id": "ab"} | fields) == vars(record)
    assert f"ml_service_{series} 1.0" in metrics.render().decode().splitlines()


def test_a_store_failure_before_the_run_is_not_a_failed_write() -> None:
    metrics = Metrics()
    CacheEvents(metrics, redis=False)(StoreFailed(step="acquire", action="bypassed", error="E", **OWN))
    assert counted(metrics, "cache_writes") == []
