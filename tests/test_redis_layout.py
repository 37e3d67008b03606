"""The keys and values that an operator sees with redis-cli, and the records of the older service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Serve = Callable[..., Any]
Body = Callable[..., bytes]


def test_a_record_is_json_under_the_key_of_the_client_and_expires(
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


def test_a_deleted_record_is_decided_again(serve: Serve, body: Body, redis_server: Any) -> None:
    service = serve(**redis_server.variables)
    first = service.predict(body(), "k")
    with redis_server.client() as client:
        assert client.delete("idempotency:k") == 1
    again = service.predict(body(), "k")
    assert "idempotency-replayed" not in again.headers
    assert again.json()["requestId"] != first.json()["requestId"]


def test_the_record_name_contains_the_caller_name(
    serve: Serve, body: Body, redis_server: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("backend = key-of-the-backend\n")
    service = serve(**redis_server.variables, ML_SERVICE_API_KEYS_FILE=str(keys))
    assert service.predict(body(), "k", **{"X-API-Key": "key-of-the-backend"}).status_code == 200
    with redis_server.client() as client:
        assert client.keys("*") == ["idempotency:backend:k"]


def test_a_refused_request_leaves_only_its_fence(serve: Serve, redis_server: Any) -> None:
    service = serve(**redis_server.variables)
    assert service.predict(b'{"agentId": 7}', "k").status_code == 422
    with redis_server.client() as client:
        # No record; the last fence of the key is kept for the retention, so that its next one is higher (R9).
        assert client.keys("*") == ["idempotency:fence:{idempotency:k}"]


def test_a_legacy_record_is_replayed_to_authenticated_callers(
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
