"""
OpenTelemetry tracing: a server span for each request, exported by OTLP.

The standard environment variables enable (`OTEL_EXPORTER_OTLP_ENDPOINT`) and configure it. Without them, its libraries
are not imported. The extra `ml-api[otel]` installs the libraries.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_api import Unusable
from ml_api.observability.logs import trace_id

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ["TracingUnusable", "Tracing", "check_tracing", "start_tracing", "tracing_wanted"]


class TracingUnusable(Unusable):
    """Tracing is configured, but its libraries are missing; the message says what to install."""


def tracing_wanted() -> bool:
    """Whether the environment has an endpoint for spans, and does not disable the SDK."""
    named = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    )
    return bool(named) and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def check_tracing() -> None:
    """
    Check that the libraries for tracing are installed, if it is wanted.

    Raises:
        TracingUnusable: They are not.
    """
    if not tracing_wanted():
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        raise TracingUnusable(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set: install ml-api[otel], or unset it"
        ) from error


def start_tracing() -> Tracer:
    """
    Set up the OpenTelemetry SDK from the standard environment variables; call it once per process.

    Raises:
        TracingUnusable: The libraries are not installed.
    """
    check_tracing()
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "ml-api")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.get_tracer("ml_api")


class Tracing:
    """
    Puts each HTTP request into a server span that continues the caller's trace (OpenTelemetry's HTTP conventions).

    Log lines have the span's trace id, and events of the idempotency middleware are added to the span.
    """

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        from opentelemetry import propagate, trace

        self.app = app
        self._tracer, self._extract, self._kind = tracer, propagate.extract, trace.SpanKind.SERVER
        self._error = trace.StatusCode.ERROR

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with self._tracer.start_as_current_span(
            scope["method"], context=self._extract(carrier), kind=self._kind, attributes=attributes
        ) as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(self._error)
                await send(message)

            token = trace_id.set(format(span.get_span_context().trace_id, "032x"))
            try:
                await self.app(scope, receive, send_and_note)
            finally:
                trace_id.reset(token)
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)
