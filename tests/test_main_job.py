"""Decisions and replays end to end, over real sockets and with each store."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from patience import until_sync

Body = Callable[..., bytes]
Serve = Callable[..., Any]


def test_a_retry_gets_the_first_answer_before_and_after_a_restart(
    serve: Serve, body: Body, store_variables: Mapping[str, str]
) -> None:
    service = serve(**store_variables)
    first = service.predict(body(), "agent-1-202602201400")
    again = service.predict(body(cash="17.00"), "agent-1-202602201400")
    assert first.status_code == 200
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert service.stop() == 0

    successor = serve(**store_variables)
    assert successor.predict(body(), "agent-1-202602201400").content == first.content


def test_concurrent_duplicates_run_once_and_wrong_keys_are_refused(
    serve: Serve, body: Body, store_variables: Mapping[str, str]
) -> None:
    service = serve(**store_variables)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: service.predict(body(), "duplicates"), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert service.metric('ml_service_cache_requests_total{result="miss"}') == 1.0
    assert service.predict(body(), "duplicates", **{"X-API-Key": "wrong"}).status_code == 401
    assert service.predict(body("agent-2"), "duplicates").status_code == 422


def test_several_workers_share_decisions_and_metrics(serve: Serve, body: Body) -> None:
    service = serve(workers=2)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: service.predict(body(), "shared"), range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert service.metric('ml_service_cache_requests_total{result="miss"}') == 1.0
    assert service.metric('ml_service_cache_requests_total{result="hit"}') == 39.0
    assert service.stop() == 0


def test_a_stop_waits_for_the_running_request(serve: Serve, body: Body) -> None:
    service = serve()
    content = body()
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
        f"X-API-Key: {service.client.headers['x-api-key']}\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(head + content[:1000])
        service.process.send_signal(signal.SIGTERM)
        until_sync(lambda: "Shutting down" in service.log)
        connection.sendall(content[1000:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert service.process.wait(30) == 0
    assert "Traceback" not in service.log
    assert serve().predict(body(), "k").headers["idempotency-replayed"] == "true"


def test_the_log_has_a_json_line_per_step_without_the_key(serve: Serve, body: Body) -> None:
    service = serve()
    for _ in range(2):
        service.predict(body(), "raw-key-of-the-client", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    service.stop()
    entries = [json.loads(line) for line in service.log.splitlines()]
    of_requests = [entry for entry in entries if "request_id" in entry]
    assert [entry["message"] for entry in of_requests] == [
        "Cache MISS",
        "Cache STORE",
        "request",
        "Cache HIT",
    ]
    assert {entry["trace_id"] for entry in of_requests} == {"a" * 32}
    assert len({entry["request_id"] for entry in of_requests}) == 2
    assert "raw-key-of-the-client" not in service.log


def test_the_demo_shows_a_decision_and_its_replays_before_and_after_a_kill(
    command: Callable[..., Any],
) -> None:
    shown = command("demo")
    assert shown.returncode == 0, shown.stderr
    assert "\nbars       Real daily bars to 2013-03-01 of Microsoft, sent as BTC" in shown.stdout
    assert "\nverdict    No skill to trade on: log loss 0.4% better" in shown.stdout
    first, second, killed, third = shown.stdout.splitlines()[-4:]
    assert first.startswith("1st answer")
    assert second.startswith("2nd answer")
    assert second.endswith("replayed, the same bytes")
    assert killed.strip().startswith("kill -9")
    assert third.startswith("3rd answer")
    assert third.endswith("replayed, the same bytes")
