"""Redis away, killed or frozen: bounded answers, a health check that never waits, recovery without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

Serve = Callable[..., Any]
Body = Callable[..., bytes]
Eventually = Callable[[Callable[[], object], str], None]

DEADLINE = 1.0  # s, the default of ML_SERVICE_STORE_DEADLINE
SLACK = 4.0  # s: a busy machine; the older service took 7.5 s (down) and 117 s (frozen)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.monotonic()
    answer = call()
    return time.monotonic() - begun, answer


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_a_keyed_request_is_refused_in_time_and_the_rest_goes_on(
    serve: Serve, body: Body, redis_server: Any, fault: str
) -> None:
    service = serve(**redis_server.variables)
    assert service.predict(body(), "before").status_code == 200
    getattr(redis_server, fault)()
    took, refused = seconds(lambda: service.predict(body(), "during"))
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
    assert int(refused.headers["retry-after"]) >= 1
    assert took < DEADLINE + SLACK
    assert service.predict(body()).status_code == 200  # without a key there is nothing to protect
    took, health = seconds(lambda: service.client.get("/health"))
    assert health.status_code == 200
    assert took < DEADLINE  # it waits for nothing; the bound allows for a busy machine
    assert service.client.get("/ready").status_code == 200


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_with_bypass_a_keyed_request_is_decided_unprotected_logged_and_counted(
    serve: Serve, body: Body, redis_server: Any, fault: str
) -> None:
    service = serve(**redis_server.variables, ML_SERVICE_ON_STORE_ERROR="bypass")
    getattr(redis_server, fault)()
    took, answer = seconds(lambda: service.predict(body(), "k"))
    assert answer.status_code == 200
    assert took < DEADLINE + SLACK
    assert service.metric('ml_service_store_errors_total{action="bypassed",step="acquire"}') == 1.0
    assert '"ERROR"' in service.log


def test_it_recovers_from_a_restart_and_from_a_freeze_without_one_of_its_own(
    serve: Serve, body: Body, redis_server: Any, eventually: Eventually
) -> None:
    service = serve(**redis_server.variables)
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


def test_it_starts_before_redis_does_and_says_when_it_is_there(
    serve: Serve, body: Body, redis_server: Any, eventually: Eventually
) -> None:
    redis_server.kill()
    service = serve(**redis_server.variables)
    assert service.predict(body(), "k").status_code == 503
    assert service.client.get("/ready").json()["storeUp"] is False
    assert "Redis cache connected" not in service.log
    redis_server.start()
    eventually(lambda: "Redis cache connected" in service.log, "the log says that Redis is connected")
    assert service.predict(body(), "k").status_code == 200
    assert service.metric("ml_service_redis_connection_errors_total") >= 1.0
    assert service.metric("ml_service_redis_up") == 1.0


def test_a_redis_that_answers_and_refuses_is_an_outage_in_log_and_metrics_too(
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
