"""
Ready-made hooks: every event as a log line, as Prometheus metrics, or on the current OpenTelemetry span.

Pass any number of them: `IdempotencyMiddleware(..., hooks=[LoggingHook(), PrometheusHook()])`. The names of log events,
metrics, labels and span attributes are public (SemVer); `docs/operations.md` lists them and says what to watch. None
carries a raw key, a header or a body.
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
    # %r, because an operation holds a path of the client's, which must not be able to forge a second line.
    kind: " ".join((name, *(f"{field}=%({field})r" for field in _FIELDS[kind])))
    for kind, name in _NAMES.items()
}


class LoggingHook:
    """
    One log record for each event, readable as it is and structured for a formatter that wants fields.

    The message begins with the event's name (`idempotency.settled operation='POST /charges' ...`), and its template
    is constant, so that records group. The record has the attributes `event` (that name) and
    `idempotency.<field>` for each field of the event.

    Args:
        logger: Where to; the logger `idempotency` by default.

    Levels: error for a lost claim (the effect may have been made twice) and for an application that raised after its
    answer was recorded (the effect may be missing), warning for a store that gave no answer, info for the rest.

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
    Counters and histograms for every event, with labels of few values only: never a path, a key or a tenant.

    Make one and share it among all middlewares and decorators of a process; a registry refuses a second one of the
    same namespace. Without *label* every series exists from the start with the value 0, so that `rate` sees the first
    failure.

    Args:
        registry: Where to register; prometheus_client's default registry where None.
        namespace: What every metric's name begins with.
        label: Adds a label `operation`; it returns the label's value for an event's operation, such as "POST /charges".
            Paths contain identifiers: return one value for each route, and one for everything else.
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

        self._claimed = counter("claimed", "Runs begun, for the first time or by takeover.", "kind")
        self._replayed = counter("replayed", "Requests answered from a record.")
        self._refused = counter("refused", "Requests answered by a problem, nothing run.", "problem")
        self._settled = counter("settled", "Runs ended, by what became of the record.", "result")
        self._failed_after = counter(
            "failed_after_record",
            "Applications that raised once their answer was recorded: possibly no effect.",
        )
        self._lost = counter("claims_lost", "Runs that no longer owned their key: possible second effects.")
        self._failures = counter("store_failures", "Calls that the store did not answer.", "step", "action")
        self._unprotected = counter("unprotected_runs", "Runs without a claim, since the store was away.")
        self._waited = histogram("wait_seconds", "Time spent waiting for a running duplicate.", "end")
        self._ran = histogram("run_seconds", "Time from the claim to the record.")
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
        for name in errors.__all__:
            kind = getattr(errors, name)
            if issubclass(kind, errors.IdempotencyError) and kind not in {
                errors.IdempotencyError,
                errors.StoreError,
                errors.RunEnded,
            }:  # roots: what is raised is below them; and what code inside a run is told
                self._refused.labels(kind.slug)
        for result in get_args(get_type_hints(Settled)["result"]):
            self._settled.labels(result)
        for step, action in _STORE_FAILURES:
            self._failures.labels(step, action)
        for end in ("claimed", "replayed"):
            self._waited.labels(end)


class OpenTelemetryHook:
    """
    Every event on the span that is current when it happens, and a link from each replay to the run it repeats.

    The span gets an event named like the log event (`idempotency.replayed`), with the event's fields as attributes
    `idempotency.<field>`, and the attributes `idempotency.key_id` and `idempotency.result` ("replayed", "refused", or
    what the run settled as). The trace context of the first run is recorded with its outcome (`traceparent`, W3C
    Trace Context); a replay's span is linked to it, so that one click leads from a retry to what really ran.

    Install it inside whatever starts the server's span, such as OpenTelemetry's ASGI instrumentation.

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
        """Write *event* on the current span; without a recording one, do nothing."""
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
        """The current span's context as a W3C `traceparent`, to be recorded with an outcome; None without a span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")

    def _link(self, span: Span, traceparent: str) -> None:
        from opentelemetry.context import Context

        recorded = self._propagator.extract({"traceparent": traceparent}, context=Context())
        first_run = self._current_span(recorded).get_span_context()
        if first_run.is_valid:  # a record comes from outside this process: what cannot be read links nowhere
            span.add_link(first_run, {"idempotency.link": "first_run"})


# From a replay that met its duplicate's last moment to the longest wait a client stays for.
_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# What the engine does about each failure.
_STORE_FAILURES: Final = (
    ("acquire", "refused"),
    ("acquire", "bypassed"),
    ("renew", "retrying"),
    ("complete", "unrecorded"),
    ("release", "unrecorded"),
)


def _child(metric: Any, labels: tuple[str, ...]) -> Any:
    """A metric without labels is its own only child; prometheus_client refuses `labels()` there."""
    return metric.labels(*labels) if labels else metric
