"""The view of an operator with redis-cli: the deployment guide's four commands, and the older service's records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Serve = Callable[..., Any]
Body = Callable[..., bytes]


def test_a_record_is_readable_under_the_clients_own_key_and_expires(
    serve: Serve, body: Body, redis_server: Any
) -> None:
    service = serve(**redis_server.variables, ML_SERVICE_REDIS_TTL_SECONDS="120")
    answer = service.predict(body(), "test-request-001")
    with redis_server.client() as client:
        assert client.keys("idempotency:*") == ["idempotency:test-request-001"]
        record = json.loads(client.get("idempotency:test-request-001"))
        assert record["status_code"] == 200
        assert json.loads(record["body"]) == answer.json()
        assert ["content-type", "application/json"] in record["headers"]
        assert 110 <= client.ttl("idempotency:test-request-001") <= 120


def test_deleting_a_record_makes_the_next_request_decide_again(
    serve: Serve, body: Body, redis_server: Any
) -> None:
    service = serve(**redis_server.variables)
    first = service.predict(body(), "k")
    with redis_server.client() as client:
        assert client.delete("idempotency:k") == 1
    again = service.predict(body(), "k")
    assert "idempotency-replayed" not in again.headers
    assert again.json()["requestId"] != first.json()["requestId"]


def test_a_named_key_is_in_the_records_name(
    serve: Serve, body: Body, redis_server: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("backend = key-of-the-backend\n")
    service = serve(**redis_server.variables, ML_SERVICE_API_KEYS_FILE=str(keys))
    assert service.predict(body(), "k", **{"X-API-Key": "key-of-the-backend"}).status_code == 200
    with redis_server.client() as client:
        assert client.keys("*") == ["idempotency:backend:k"]


def test_nothing_but_success_is_kept(serve: Serve, redis_server: Any) -> None:
    service = serve(**redis_server.variables)
    assert service.predict(b'{"agentId": 7}', "k").status_code == 422
    with redis_server.client() as client:
        # No record; what stays for the retention is the last fence, so that the key's next one is higher (R9).
        assert client.keys("*") == ["idempotency:fence:{idempotency:k}"]


def test_a_record_of_the_older_service_replays_to_those_who_may_call(
    serve: Serve, body: Body, redis_server: Any
) -> None:
    service = serve(**redis_server.variables)
    old = {
        "status_code": 200,
        "headers": {"content-type": "application/json", "content-length": "9"},
        "body": '{"a": 1}',
    }
    with redis_server.client() as client:
        client.set("idempotency:agent-1-202602201400", json.dumps(old), ex=60)
    refused = service.predict(body(), "agent-1-202602201400", **{"X-API-Key": "wrong"})
    answer = service.predict(body(), "agent-1-202602201400")
    assert refused.status_code == 401
    assert (answer.status_code, answer.content) == (200, b'{"a": 1}')
    assert answer.headers["idempotency-replayed"] == "true"
    assert answer.headers["content-length"] == "8"
