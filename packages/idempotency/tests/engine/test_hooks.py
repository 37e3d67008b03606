"""The hooks: log records, metrics and spans of a request, none of which contains a secret."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from idempotency import IdempotencyMiddleware, Policy, StoreUnavailable, by_header
from idempotency.events import Claimed, ClaimLost, Event, Refused, Replayed, Settled, StoreFailed
from idempotency.hooks import LoggingHook, OpenTelemetryHook, PrometheusHook
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

ON = {"operation": "POST /charges", "key_id": "0bafe22156d2"}
CLAIMED = Claimed(**ON, attempt=1, waited=0.0)
TAKEN_OVER = Claimed(**ON, attempt=2, waited=1.5)
REPLAYED = Replayed(**ON, age=3.0, waited=0.25)
REFUSED = Refused(operation="POST /charges", key_id=None, problem="invalid-key", status=400)
SETTLED = Settled(**ON, attempt=1, result="kept", duration=0.5)
LOST = ClaimLost(**ON, attempt=1)
BYPASSED = StoreFailed(**ON, step="acquire", action="bypassed", error="StoreUnavailable")
EVERY: list[Event] = [CLAIMED, TAKEN_OVER, REPLAYED, REFUSED, SETTLED, LOST, BYPASSED]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Charges:
    """An application that answers every POST, behind the middleware with *hooks*."""

    def __init__(self, *hooks: Any, store: Any = None, policy: Policy | None = None) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 201, "headers": []})
            await send({"type": "http.response.body", "body": b"secret body"})

        self.app = IdempotencyMiddleware(
            app,
            store=store or MemoryStore(),
            tenant=by_header("authorization", stable=True),
            policy=policy or Policy(),
            hooks=hooks,
        )

    async def post(self, key: str) -> int:
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        headers = [(b"idempotency-key", key.encode()), (b"authorization", b"Bearer secret-token")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/charges",
            "query_string": b"",
            "headers": headers,
        }
        await self.app(scope, receive, send)
        return status


# Logs.


@pytest.fixture
def log() -> tuple[logging.Logger, list[logging.LogRecord]]:
    logger = logging.Logger("test", logging.INFO)  # noqa: LOG001 - one of its own for each test
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    return logger, records


def test_each_event_is_one_log_record_with_its_fields_as_attributes(log) -> None:
    logger, records = log
    hook = LoggingHook(logger)
    for event in EVERY:
        hook(event)

    assert [record.event for record in records] == [
        "idempotency.claimed",
        "idempotency.claimed",
        "idempotency.replayed",
        "idempotency.refused",
        "idempotency.settled",
        "idempotency.claim_lost",
        "idempotency.store_failed",
    ]
    settled = vars(records[4])
    assert settled["idempotency.result"] == "kept"
    assert settled["idempotency.duration"] == 0.5
    assert settled["idempotency.operation"] == "POST /charges"


def test_log_message_contains_all_fields(log) -> None:
    logger, records = log
    LoggingHook(logger)(SETTLED)

    assert records[0].getMessage() == (
        "idempotency.settled operation='POST /charges' key_id='0bafe22156d2' attempt=1 result='kept' duration=0.5"
    )


def test_lost_claim_is_logged_as_error_and_store_failure_as_warning(log) -> None:
    logger, records = log
    hook = LoggingHook(logger)
    for event in EVERY:
        hook(event)

    levels = {record.event: record.levelno for record in records}
    assert levels.pop("idempotency.claim_lost") == logging.ERROR
    assert levels.pop("idempotency.store_failed") == logging.WARNING
    assert set(levels.values()) == {logging.INFO}


def test_newline_in_a_path_makes_no_second_log_line(log) -> None:
    logger, records = log
    LoggingHook(logger)(
        Claimed(operation="POST /a\nERROR root forged", key_id="0bafe22156d2", attempt=1, waited=0.0)
    )

    assert "\n" not in records[0].getMessage()


def test_events_below_the_log_level_make_no_record(log) -> None:
    logger, records = log
    logger.setLevel(logging.ERROR)
    hook = LoggingHook(logger)
    for event in EVERY:
        hook(event)

    assert [record.event for record in records] == ["idempotency.claim_lost"]


async def test_log_of_a_run_and_its_replay_contains_no_key_token_or_body(log) -> None:
    logger, records = log
    charges = Charges(LoggingHook(logger))
    for _ in range(2):
        assert await charges.post("customer-secret-key") == 201

    shown = " ".join(repr(vars(record)) + record.getMessage() for record in records)
    assert [record.event for record in records][-1] == "idempotency.replayed"
    assert not any(secret in shown for secret in ("customer-secret-key", "secret-token", "secret body"))


# Prometheus.


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_each_event_is_counted_once_under_its_public_metric_name() -> None:
    registry = CollectorRegistry()
    hook = PrometheusHook(registry)
    for event in EVERY:
        hook(event)

    assert value(registry, "idempotency_claimed_total", kind="first") == 1
    assert value(registry, "idempotency_claimed_total", kind="takeover") == 1
    assert value(registry, "idempotency_replayed_total") == 1
    assert value(registry, "idempotency_refused_total", problem="invalid-key") == 1
    assert value(registry, "idempotency_settled_total", result="kept") == 1
    assert value(registry, "idempotency_claims_lost_total") == 1
    assert value(registry, "idempotency_store_failures_total", step="acquire", action="bypassed") == 1
    assert value(registry, "idempotency_unprotected_runs_total") == 1
    assert value(registry, "idempotency_run_seconds_sum") == 0.5
    assert value(registry, "idempotency_wait_seconds_sum", end="claimed") == 1.5
    assert value(registry, "idempotency_wait_seconds_sum", end="replayed") == 0.25


def test_request_that_did_not_wait_is_not_observed_as_a_wait() -> None:
    registry = CollectorRegistry()
    PrometheusHook(registry)(CLAIMED)

    assert value(registry, "idempotency_wait_seconds_count", end="claimed") == 0


def test_failure_counters_start_at_zero() -> None:
    registry = CollectorRegistry()
    PrometheusHook(registry)

    assert value(registry, "idempotency_claims_lost_total") == 0
    assert value(registry, "idempotency_unprotected_runs_total") == 0
    assert value(registry, "idempotency_refused_total", problem="key-reused") == 0
    assert value(registry, "idempotency_settled_total", result="abandoned") == 0
    assert value(registry, "idempotency_store_failures_total", step="complete", action="unrecorded") == 0


def test_retried_store_failure_is_not_counted_as_an_unprotected_run() -> None:
    registry = CollectorRegistry()
    PrometheusHook(registry)(StoreFailed(**ON, step="renew", action="retrying", error="StoreUnavailable"))

    assert value(registry, "idempotency_unprotected_runs_total") == 0


def test_operation_and_key_are_not_labels_by_default() -> None:
    registry = CollectorRegistry()
    hook = PrometheusHook(registry)
    for number in range(3):
        hook(Claimed(operation=f"POST /charges/{number}", key_id=f"{number:012x}", attempt=1, waited=0.0))

    exposed = generate_latest(registry).decode()
    assert "/charges" not in exposed
    assert value(registry, "idempotency_claimed_total", kind="first") == 3


def test_label_function_maps_operations_to_label_values() -> None:
    registry = CollectorRegistry()
    hook = PrometheusHook(registry, label=lambda operation: "charges" if "/charges" in operation else "other")
    for event in EVERY:
        hook(event)
    hook(Claimed(operation="POST /elsewhere", key_id="0" * 12, attempt=1, waited=0.0))

    assert value(registry, "idempotency_claimed_total", operation="charges", kind="first") == 1
    assert value(registry, "idempotency_claimed_total", operation="other", kind="first") == 1
    assert value(registry, "idempotency_replayed_total", operation="charges") == 1


def test_two_hooks_need_two_namespaces() -> None:
    registry = CollectorRegistry()
    PrometheusHook(registry)
    other = PrometheusHook(registry, namespace="billing")
    other(REPLAYED)

    assert value(registry, "billing_replayed_total") == 1
    assert value(registry, "idempotency_replayed_total") == 0
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusHook(registry)


async def test_first_run_replay_and_refusal_are_counted_through_the_middleware() -> None:
    registry = CollectorRegistry()
    charges = Charges(PrometheusHook(registry))
    await charges.post("k-1")
    await charges.post("k-1")
    await charges.post('"open')

    assert value(registry, "idempotency_claimed_total", kind="first") == 1
    assert value(registry, "idempotency_settled_total", result="kept") == 1
    assert value(registry, "idempotency_replayed_total") == 1
    assert value(registry, "idempotency_refused_total", problem="invalid-key") == 1


class UnavailableStore(MemoryStore):
    async def acquire(self, key: Any, **_: Any) -> Any:
        raise StoreUnavailable("away")


async def test_run_that_bypasses_an_unavailable_store_is_counted_as_unprotected() -> None:
    registry = CollectorRegistry()
    charges = Charges(
        PrometheusHook(registry), store=UnavailableStore(), policy=Policy(on_store_error="bypass")
    )

    assert await charges.post("k-1") == 201
    assert value(registry, "idempotency_unprotected_runs_total") == 1


# OpenTelemetry.


@pytest.fixture
def spans() -> tuple[trace.Tracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test"), exporter


async def test_replay_span_links_to_the_span_of_the_first_run(spans) -> None:
    tracer, exporter = spans
    charges = Charges(OpenTelemetryHook())
    for name in ("first", "retry"):
        with tracer.start_as_current_span(name):
            await charges.post("k-1")

    first, retry = exporter.get_finished_spans()
    assert [link.context.span_id for link in retry.links] == [first.context.span_id]
    assert retry.links[0].context.trace_id == first.context.trace_id
    assert first.links == ()
    assert first.attributes["idempotency.result"] == "kept"
    assert retry.attributes["idempotency.result"] == "replayed"
    assert retry.attributes["idempotency.key_id"] == first.attributes["idempotency.key_id"]
    assert [event.name for event in first.events] == ["idempotency.claimed", "idempotency.settled"]
    assert [event.name for event in retry.events] == ["idempotency.replayed"]


@pytest.mark.parametrize("event", EVERY, ids=lambda event: type(event).__name__)
def test_each_event_is_added_to_the_current_span(spans, event: Event) -> None:
    tracer, exporter = spans
    with tracer.start_as_current_span("request"):
        OpenTelemetryHook()(event)

    (written,) = exporter.get_finished_spans()[0].events
    assert written.name.startswith("idempotency.")
    assert written.attributes["idempotency.operation"] == "POST /charges"


def test_refusal_sets_the_result_attribute_of_its_span(spans) -> None:
    tracer, exporter = spans
    with tracer.start_as_current_span("request"):
        OpenTelemetryHook()(REFUSED)

    assert exporter.get_finished_spans()[0].attributes["idempotency.result"] == "refused"


@pytest.mark.parametrize("recorded", ["", "garbage", "00-0-0-00", "ff-" + "1" * 32 + "-" + "2" * 16 + "-01"])
def test_unreadable_recorded_traceparent_makes_no_link(spans, recorded: str) -> None:
    tracer, exporter = spans
    with tracer.start_as_current_span("request"):
        OpenTelemetryHook()(Replayed(**ON, age=0.0, waited=0.0, traceparent=recorded))

    assert exporter.get_finished_spans()[0].links == ()


def test_hook_without_a_current_span_does_nothing() -> None:
    hook = OpenTelemetryHook()
    hook(REPLAYED)

    assert hook.traceparent() is None


# Missing libraries.


@pytest.mark.parametrize(
    ("hook", "module", "extra"),
    [(PrometheusHook, "prometheus_client", "prometheus"), (OpenTelemetryHook, "opentelemetry", "otel")],
)
def test_missing_library_is_an_import_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, hook: Any, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ImportError, match=rf"asgi-idempotency\[{extra}\]"):
        hook()
