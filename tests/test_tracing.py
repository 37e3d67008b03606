"""OpenTelemetry end to end: the spans that a plain HTTP collector receives."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """A collector that keeps every received span."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        keep = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    content = gzip.decompress(content)
                for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                    for scope in resource.scope_spans:
                        keep.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def test_a_request_span_continues_the_trace_of_the_caller_and_a_replay_links_to_its_run(
    serve: Callable[..., Any],
    body: Callable[..., bytes],
    collector: Collector,
    eventually: Callable[..., None],
) -> None:
    service = serve(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="50")
    service.predict(body(), "k", traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    service.predict(body(), "k")

    def named() -> list[Any]:
        return [span for span in collector.spans if span.name == "POST /predict"]

    eventually(lambda: len(named()) == 2, "both spans were exported")
    first, replay = sorted(named(), key=lambda span: span.start_time_unix_nano)
    assert first.trace_id.hex() == TRACE
    assert replay.trace_id.hex() != TRACE
    assert [link.span_id for link in replay.links] == [first.span_id]
    assert {"idempotency.claimed", "idempotency.settled"} <= {event.name for event in first.events}
    logged = [json.loads(line) for line in service.log.splitlines()]
    hits = [entry for entry in logged if entry["message"] == "Cache HIT"]
    assert [entry["trace_id"] for entry in hits] == [replay.trace_id.hex()]
