"""
Metrics and log lines for each request, and for each use of the idempotency store.

`Telemetry` wraps the application. `CacheEvents` is a hook of the idempotency middleware; it logs the lines that
operators search for: `Cache HIT`, `Cache MISS`, `Cache STORE`.
"""

from __future__ import annotations

import logging
import re
import time
from functools import cache
from random import getrandbits

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idempotency.errors import StoreUnavailable
from idempotency.events import Claimed, ClaimLost, Event, Refused, Replayed, Settled, StoreFailed
from ml_api.http.problems import problem_response
from ml_api.observability.logs import request_id, trace_id
from ml_api.observability.metrics import Metrics
from ml_api.observability.quick_lines import log_info

__all__ = ["REQUEST_ID_HEADER", "CacheEvents", "Telemetry"]

REQUEST_ID_HEADER = "X-Request-ID"

_log = logging.getLogger("ml_api.request")
_cache_log = logging.getLogger("ml_api.cache")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z")


class Telemetry:
    """
    Gives each request an id, a log line and metrics, and answers an unexpected exception with 500, without details.

    The caller's X-Request-ID is used if it is 1 to 128 characters of `A-Za-z0-9._-`; otherwise one is generated.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        # Cached, because each request looks up labels, and they have few values.
        self._requests = cache(metrics.requests.labels)
        self._response_seconds = cache(metrics.response_seconds.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Observe an HTTP request; pass other scopes on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, seen = time.perf_counter(), _Seen(scope["headers"])
        id_token, trace_token = request_id.set(seen.request_id), trace_id.set(seen.trace_id or trace_id.get())
        id_header = (REQUEST_ID_HEADER.lower().encode(), seen.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), id_header]}
                seen.answer(message)
            await send(message)

        try:
            try:
                await self.app(scope, receive, send_with_id)
                seen.status = seen.status or _CLIENT_LEFT
            except ClientDisconnect:
                seen.status = _CLIENT_LEFT
            except Exception:
                _log.exception("ERROR in the handler")
                if seen.status:
                    raise  # a part of the answer was sent, so the server must close the connection
                refusal = problem_response(
                    500, "internal-error", "The service failed; look for the request id in its log"
                )
                await refusal(scope, receive, send_with_id)
        finally:
            self._record(scope, seen, time.perf_counter() - begun)
            request_id.reset(id_token)
            trace_id.reset(trace_token)

    def _record(self, scope: Scope, seen: _Seen, seconds: float) -> None:
        # The route's template instead of the path, because a label must have few values.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests(route, method, str(seen.status)).inc()
        self._response_seconds(route, seen.cache).observe(seconds)
        fields = {
            "method": method,
            "route": route,
            "status": seen.status,
            "duration_ms": round(seconds * 1000, 3),
            "cache": seen.cache,
        }
        # A hit has the line `Cache HIT` already, and health checks come every few seconds.
        if route in _QUIET or seen.cache == "hit":
            _log.debug("request", extra=fields)
        else:
            log_info(_log, "request", fields)


# The client disconnected before its request was complete, so nothing is sent. Only for logs and metrics; nginx uses it.
_CLIENT_LEFT = 499
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/health", "/ready", "/metrics"})


class _Seen:
    """What the log line and metrics need of one request and its answer; status is 0 until the answer begins."""

    __slots__ = ("cache", "request_id", "status", "trace_id")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.status, self.cache, self.request_id, self.trace_id = 0, "none", "", ""
        for name, value in headers:
            if name == b"idempotency-key":
                self.cache = "miss"
            elif name == b"x-request-id" and _REQUEST_ID.match(value):
                self.request_id = value.decode()
            elif name == b"traceparent" and (found := _TRACEPARENT.match(value)):
                self.trace_id = found[1].decode()
        # An id is not a secret, so it needs no system call for strong randomness.
        self.request_id = self.request_id or f"{getrandbits(128):032x}"

    def answer(self, message: Message) -> None:
        self.status = message["status"]
        if (b"idempotency-replayed", b"true") in message["headers"]:
            self.cache = "hit"


class CacheEvents:
    """
    A hook with one log line and one count for each event of the idempotency middleware.

    Args:
        redis: Whether the store is Redis, so that its outages are also counted in `redis_connection_errors`.
    """

    def __init__(self, metrics: Metrics, *, redis: bool) -> None:
        self._metrics, self._redis = metrics, redis
        self._hits, self._misses = (metrics.cache_requests.labels(result) for result in ("hit", "miss"))
        self._writes = cache(metrics.cache_writes.labels)

    def __call__(self, event: Event) -> None:
        """Log and count *event*, which contains a digest of the key, but not the key."""
        match event:
            case Replayed():
                self._hits.inc()
                log_info(_cache_log, "Cache HIT", {"key_id": event.key_id, "age_s": round(event.age, 3)})
            case Claimed():
                self._misses.inc()
                log_info(_cache_log, "Cache MISS", {"key_id": event.key_id, "attempt": event.attempt})
            case Settled():
                self._writes("stored" if event.kept else event.result).inc()
                text = "Cache STORE" if event.kept else f"Cache {event.result}"
                fields = {"key_id": event.key_id, "run_ms": round(event.duration * 1000, 3)}
                log_info(_cache_log, text, fields)
            case Refused():
                self._metrics.cache_refusals.labels(event.problem).inc()
                _cache_log.info("Cache REFUSED", extra={"key_id": event.key_id, "problem": event.problem})
            case ClaimLost():
                self._writes("lost").inc()
                _cache_log.error(
                    "ERROR claim lost: the decision may have been made twice", extra={"key_id": event.key_id}
                )
            case StoreFailed():
                self._metrics.store_errors.labels(event.step, event.action).inc()
                if self._redis and event.error == StoreUnavailable.__name__:
                    self._metrics.redis_connection_errors.inc()
                if event.action == "unrecorded":
                    self._writes("failed").inc()
                _cache_log.error(
                    f"ERROR idempotency store failed, {event.action}",
                    extra={
                        "key_id": event.key_id,
                        "step": event.step,
                        "error": event.error,
                        "reason": event.reason,
                    },
                )
