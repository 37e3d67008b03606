"""The client of the library against the service: lost answers, outages and restarts, always one decision."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from patience import until_sync

from idempotency.client import IdempotencyTransport, Retry

pytestmark = pytest.mark.real_time("a server stops and starts again")

Serve = Callable[..., Any]
Body = Callable[..., bytes]


def client_of(service: Any, port: int) -> httpx.Client:
    transport = IdempotencyTransport(httpx.HTTPTransport(), retry=Retry(attempts=20, timeout=30.0))
    return httpx.Client(
        transport=transport, base_url=f"http://127.0.0.1:{port}", headers=service.client.headers
    )


def test_a_lost_answer_is_replayed_and_decided_once(
    serve: Serve, body: Body, lossy_proxy: Callable[[int], int]
) -> None:
    service = serve()
    with client_of(service, lossy_proxy(service.port)) as client:
        answer = client.post("/predict", content=body())
    assert answer.status_code == 200
    assert answer.headers["idempotency-replayed"] == "true"
    assert service.metric('ml_service_cache_requests_total{result="miss"}') == 1.0


def test_a_call_succeeds_despite_a_redis_outage(serve: Serve, body: Body, redis_server: Any) -> None:
    service = serve(**redis_server.variables)
    redis_server.kill()

    refused = 'ml_service_requests_total{method="POST",route="/predict",status="503"}'

    def restart_redis() -> None:
        until_sync(lambda: service.metric(refused) >= 1.0)
        redis_server.start()

    restarting = threading.Thread(target=restart_redis)
    restarting.start()
    with client_of(service, service.port) as client:
        answer = client.post("/predict", content=body())
    restarting.join()
    assert answer.status_code == 200
    assert service.metric(refused) >= 1.0


def test_a_call_succeeds_despite_a_restart_of_the_service(serve: Serve, body: Body) -> None:
    service = serve()
    first = service.predict(body(), "k")
    successors: list[Any] = []

    def restart() -> None:
        service.stop()
        successors.append(serve(port=service.port))

    restarting = threading.Thread(target=restart)
    with client_of(service, service.port) as client:
        restarting.start()
        answers = [
            client.post("/predict", content=body(), headers={"Idempotency-Key": "k"}) for _ in range(20)
        ]
        restarting.join()
        answers.append(client.post("/predict", content=body(), headers={"Idempotency-Key": "k"}))
    assert {answer.content for answer in answers} == {first.content}
