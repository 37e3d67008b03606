"""
Ready-made hooks: every event as a log line, as Prometheus metrics, or on the current OpenTelemetry span.

Pass any number of them: `IdempotencyMiddleware(..., hooks=[LoggingHook(), PrometheusHook()])`. The names of log events,
metrics, labels and span attributes are public (SemVer); `docs/operations.md` lists them and says what to watch. They
never contain a raw key, a header or a body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints

from idempotency import errors
from idempotency._runtime.extras import missing
from idempotency.events import (
    Claimed,
    ClaimLost,
    Event,
    FailedAfterRecord,
    Refused,
    Replayed,
    Settled,
    StoreFailed,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from prometheus_client import CollectorRegistry

__all__ = ["LoggingHook", "OpenTelemetryHook", "PrometheusHook"]

_NAMES: Final[dict[type[Event], str]] = {
    Claimed: "idempotency.claimed",
    Replayed: "idempotency.replayed",
    Refused: "idempotency.refused",
    Settled: "idempotency.settled",
    FailedAfterRecord: "idempotency.failed_after_record",
    ClaimLost: "idempotency.claim_lost",
    StoreFailed: "idempotency.store_failed",
}
_LEVELS: Final = {FailedAfterRecord: logging.ERROR, ClaimLost: logging.ERROR, StoreFailed: logging.WARNING}
_FIELDS: Final = {kind: tuple(field.name for field in fields(kind)) for kind in _NAMES}
_TEMPLATES: Final = {
    # %r, because an operation contains the client's path, which must not forge a second log line.
    kind: " ".join((name, *(f"{field}=%({field})r" for field in _FIELDS[kind])))
    for kind, name in _NAMES.items()
}


class LoggingHook:
    """
    One log record for each event: a readable message, with the fields as attributes for structured formatters.

    The message begins with the event's name (`idempotency.settled operation='POST /charges' ...`), and its template
    is constant, so that records group. The record has the attributes `event` (that name) and
    `idempotency.<field>` for each field of the event.

    Args:
        logger: The logger to write to; by default `idempotency`.

    Levels: error for a lost claim (there may be two effects) and for an application that raised after its answer was
    recorded (the effect may be missing), warning for a store that gave no answer, info for all other events.

    >>> from idempotency.events import ClaimLost
    >>> import logging, sys
    >>> logger = logging.getLogger("example.idempotency")
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> LoggingHook(logger)(ClaimLost(operation="POST /charges", key_id="0bafe22156d2", attempt=1))
    idempotency.claim_lost operation='POST /charges' key_id='0bafe22156d2' attempt=1
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("idempotency")

    def __call__(self, event: Event) -> None:
        """Log *event*."""
        kind = type(event)
        level = _LEVELS.get(kind, logging.INFO)
        if not self._logger.isEnabledFor(level):
            return
        values = {name: getattr(event, name) for name in _FIELDS[kind]}
        extra = {f"idempotency.{name}": value for name, value in values.items()}
        self._logger.log(level, _TEMPLATES[kind], values, extra={"event": _NAMES[kind], **extra})


class PrometheusHook:
    """
    Counters and histograms for every event. Labels have few values: never a path, a key or a tenant.

    Make one and share it among all middlewares and decorators of a process; a registry refuses a second one with the
    same namespace. Without *label* every series exists from the start with the value 0, so that `rate` sees the first
    failure.

    Args:
        registry: The registry for the metrics; None: prometheus_client's default registry.
        namespace: The beginning of every metric name.
        label: Adds a label `operation`: takes the operation of an event, such as "POST /charges", and returns the value
            of the label. Paths contain identifiers, so return one value for each route and one for all other paths.
    Raises:
        ImportError: prometheus-client is not installed.
        ValueError: The registry has these metrics already.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        namespace: str = "idempotency",
        label: Callable[[str], str] | None = None,
    ) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Histogram
        except ModuleNotFoundError as error:
            raise missing("prometheus", "PrometheusHook", error) from error
        self._label = label
        always = ("operation",) if label is not None else ()

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(
                name, help_text, (*always, *labels), namespace=namespace, registry=registry or REGISTRY
            )

        def histogram(name: str, help_text: str, *labels: str) -> Histogram:
            return Histogram(
                name,
                help_text,
                (*always, *labels),
                namespace=namespace,
                registry=registry or REGISTRY,
                buckets=_SECONDS,
            )

        self._claimed = counter("claimed", "Runs that began, as first runs or takeovers.", "kind")
        self._replayed = counter("replayed", "Requests answered from a record.")
        self._refused = counter("refused", "Requests refused with a problem; nothing ran.", "problem")
        self._settled = counter("settled", "Runs that ended, by result.", "result")
        self._failed_after = counter(
            "failed_after_record",
            "Runs that raised after their answer was recorded: the effect may be missing.",
        )
        self._lost = counter("claims_lost", "Runs that lost their claim: there may be a second effect.")
        self._failures = counter("store_failures", "Store calls without an answer.", "step", "action")
        self._unprotected = counter("unprotected_runs", "Runs without a claim because the store failed.")
        self._waited = histogram("wait_seconds", "Seconds spent waiting for a running duplicate.", "end")
        self._ran = histogram("run_seconds", "Seconds from the claim to the end of the run.")
        if label is None:
            self._start_at_zero()

    def __call__(self, event: Event) -> None:
        """Count *event*."""
        always = () if self._label is None else (self._label(event.operation),)
        match event:
            case Claimed(attempt=attempt, waited=waited):
                self._claimed.labels(*always, "first" if attempt == 1 else "takeover").inc()
                if waited > 0:
                    self._waited.labels(*always, "claimed").observe(waited)
            case Replayed(waited=waited):
                _child(self._replayed, always).inc()
                if waited > 0:
                    self._waited.labels(*always, "replayed").observe(waited)
            case Refused(problem=problem):
                self._refused.labels(*always, problem).inc()
            case Settled(result=result, duration=duration):
                self._settled.labels(*always, result).inc()
                _child(self._ran, always).observe(duration)
            case FailedAfterRecord():
                _child(self._failed_after, always).inc()
            case ClaimLost():
                _child(self._lost, always).inc()
            case StoreFailed(step=step, action=action):
                self._failures.labels(*always, step, action).inc()
                if action == "bypassed":
                    _child(self._unprotected, always).inc()

    def _start_at_zero(self) -> None:
        for begun in ("first", "takeover"):
            self._claimed.labels(begun)
        # Base classes, and an error that only code inside a run gets.
        never_sent = {errors.IdempotencyError, errors.StoreError, errors.RunEnded}
        for name in errors.__all__:
            kind = getattr(errors, name)
            if issubclass(kind, errors.IdempotencyError) and kind not in never_sent:
                self._refused.labels(kind.slug)
        for result in get_args(get_type_hints(Settled)["result"]):
            self._settled.labels(result)
        for step, action in _STORE_FAILURES:
            self._failures.labels(step, action)
        for end in ("claimed", "replayed"):
            self._waited.labels(end)


class OpenTelemetryHook:
    """
    Adds every event to the current span, and links each replay to the run whose outcome it repeats.

    The span gets an event named like the log event (`idempotency.replayed`), with the event's fields as attributes
    `idempotency.<field>`, and the attributes `idempotency.key_id` and `idempotency.result` ("replayed", "refused", or
    what the run settled as). The trace context of the first run is recorded with its outcome (`traceparent`, W3C
    Trace Context), and the span of a replay is linked to it, so that one click leads from a retry to the run.

    Install it inside the layer that starts the server span, such as OpenTelemetry's ASGI instrumentation.

    Raises:
        ImportError: opentelemetry-api is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise missing("otel", "OpenTelemetryHook", error) from error
        self._current_span = trace.get_current_span
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, event: Event) -> None:
        """Add *event* to the current span, if that is recording."""
        span = self._current_span()
        if not span.is_recording():
            return
        values = {name: getattr(event, name) for name in _FIELDS[type(event)]}
        attributes = {f"idempotency.{name}": value for name, value in values.items() if value is not None}
        span.add_event(_NAMES[type(event)], attributes)
        if event.key_id is not None:
            span.set_attribute("idempotency.key_id", event.key_id)
        match event:
            case Replayed(traceparent=traceparent):
                span.set_attribute("idempotency.result", "replayed")
                if traceparent is not None:
                    self._link(span, traceparent)
            case Refused():
                span.set_attribute("idempotency.result", "refused")
            case Settled(result=result):
                span.set_attribute("idempotency.result", result)

    def traceparent(self) -> str | None:
        """The context of the current span as a W3C `traceparent`, recorded with an outcome; None without a span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")

    def _link(self, span: Span, traceparent: str) -> None:
        from opentelemetry.context import Context

        recorded = self._propagator.extract({"traceparent": traceparent}, context=Context())
        first_run = self._current_span(recorded).get_span_context()
        if first_run.is_valid:  # the record comes from outside this process and may be unreadable
            span.add_link(first_run, {"idempotency.link": "first_run"})


# Buckets, from a very short wait to the longest that a client accepts.
_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# The engine's action after each kind of failure.
_STORE_FAILURES: Final = (
    ("acquire", "refused"),
    ("acquire", "bypassed"),
    ("renew", "retrying"),
    ("complete", "unrecorded"),
    ("release", "unrecorded"),
)


def _child(metric: Any, labels: tuple[str, ...]) -> Any:
    """The child of *metric* for *labels*; a metric without labels is its own child and refuses `labels()`."""
    return metric.labels(*labels) if labels else metric
