"""Redis killed, frozen or full: answers in time, health checks that do not wait, recovery without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

Serve = Callable[..., Any]
Body = Callable[..., bytes]
Eventually = Callable[[Callable[[], object], str], None]

HURRIED = {"ML_SERVICE_STORE_DEADLINE": "1"}
"""The default: a request waits one second for the store."""

IN_TIME = 5.0  # s: the shortest of three; the older service took 7.5 s (down) and 117 s (frozen)


def shortest(call: Callable[[], httpx.Response], *, status: int) -> tuple[float, httpx.Response]:
    """Call three times, each with *status*; return the shortest time in seconds and its answer."""
    timed = []
    for _ in range(3):
        begun = time.monotonic()
        answer = call()
        timed.append((time.monotonic() - begun, answer))
        assert answer.status_code == status, answer.text
    return min(timed, key=lambda one: one[0])


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_during_an_outage_only_requests_with_a_key_are_refused_and_in_time(
    serve: Serve, body: Body, redis_server: Any, eventually: Eventually, fault: str
) -> None:
    service = serve(**redis_server.variables, **HURRIED)
    eventually(lambda: service.predict(body(), "before").status_code == 200, "the store answers in time")
    getattr(redis_server, fault)()
    took, refused = shortest(lambda: service.predict(body(), "during"), status=503)
    assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) >= 1
    assert took < IN_TIME
    assert service.predict(body()).status_code == 200  # requests without a key do not need the store
    took, _ = shortest(lambda: service.client.get("/health"), status=200)
    assert took < float(HURRIED["ML_SERVICE_STORE_DEADLINE"]), "health does not wait for the store"
    assert service.client.get("/ready").status_code == 200


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_bypass_decides_requests_with_a_key_during_an_outage_and_counts_them(
    serve: Serve, body: Body, redis_server: Any, fault: str
) -> None:
    service = serve(**redis_server.variables, **HURRIED, ML_SERVICE_ON_STORE_ERROR="bypass")
    getattr(redis_server, fault)()
    took, _ = shortest(lambda: service.predict(body(), "k"), status=200)
    assert took < IN_TIME
    assert service.metric('ml_service_store_errors_total{action="bypassed",step="acquire"}') == 3.0
    assert '"ERROR"' in service.log


def test_the_service_recovers_from_a_redis_restart_and_freeze(
    serve: Serve, body: Body, redis_server: Any, eventually: Eventually
) -> None:
    service = serve(**redis_server.variables, **HURRIED)
    redis_server.kill()
    assert service.predict(body(), "k").status_code == 503
    redis_server.start()
    eventually(lambda: service.predict(body(), "k").status_code == 200, "decides again after a restart")
    redis_server.freeze()
    assert service.predict(body(), "k").status_code == 503
    redis_server.thaw()
    eventually(
        lambda: service.predict(body(), "k").headers.get("idempotency-replayed"), "replays after a freeze"
    )


def test_the_service_starts_without_redis_and_logs_when_it_connects(
    serve: Serve, body: Body, redis_server: Any, eventually: Eventually
) -> None:
    redis_server.kill()
    service = serve(**redis_server.variables, **HURRIED)
    assert service.predict(body(), "k").status_code == 503
    assert service.client.get("/ready").json()["storeUp"] is False
    assert "Redis cache connected" not in service.log
    redis_server.start()
    eventually(lambda: "Redis cache connected" in service.log, "the log says that Redis is connected")
    eventually(lambda: service.predict(body(), "k").status_code == 200, "decides once Redis is there")
    assert service.metric("ml_service_redis_connection_errors_total") >= 1.0
    assert service.metric("ml_service_redis_up") == 1.0


def test_redis_out_of_memory_is_logged_and_counted_as_an_outage(
    serve: Serve, body: Body, redis_server: Any
) -> None:
    service = serve(**redis_server.variables)
    with redis_server.client() as client:
        client.config_set("maxmemory", "1")
        assert service.predict(body(), "during").status_code == 503
        client.config_set("maxmemory", "0")
    assert service.predict(body(), "after").status_code == 200
    assert "out of memory" in service.log
    assert service.metric("ml_service_redis_connection_errors_total") >= 1.0
    assert service.metric('ml_service_store_errors_total{action="refused",step="acquire"}') >= 1.0
