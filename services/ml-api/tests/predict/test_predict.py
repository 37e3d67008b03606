"""POST /predict over HTTP: answers, errors, and the Idempotency-Key."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from idempotency.stores.memory import MemoryStore
from ml_api.observability.metrics import Metrics
from ml_api.predict.service import PredictionService
from ml_api.stores.backend import Backend
from ml_api.stores.redis_monitor import RedisMonitor

pytestmark = pytest.mark.anyio

Service = Callable[..., httpx.AsyncClient]
Body = Callable[..., bytes]
Headers = Callable[..., dict[str, str]]

MEMBERS = [
    "schemaVersion",
    "modelVersion",
    "requestId",
    "agentId",
    "createdAt",
    "orders",
    "signals",
    "reasoning",
]
LATER = datetime(2026, 2, 20, 14, 30, tzinfo=UTC)


async def test_an_answer_has_all_members_and_json_numbers(
    service: Service, body: Body, headers: Headers
) -> None:
    async with service() as client:
        answer = await client.post("/predict", content=body(), headers=headers())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    decision = answer.json()
    assert list(decision) == MEMBERS
    assert decision["agentId"] == "agent-1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", decision["createdAt"])
    assert len(decision["signals"]) == 18
    assert all(type(signal["value"]) in {int, float} for signal in decision["signals"])
    assert all(type(order["quantity"]) in {int, float} for order in decision["orders"])


async def test_a_chunked_body_without_content_length_is_read(
    service: Service, body: Body, headers: Headers
) -> None:
    async def chunks():  # type: ignore[no-untyped-def]
        content = body()
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    async with service() as client:
        answer = await client.post("/predict", content=chunks(), headers=headers("k"))
    assert answer.status_code == 200


class TestIdempotencyKey:
    """As the .NET client uses it: one key per agent and candle minute, a fresh requestId on every call."""

    async def test_a_key_replays_for_another_request_id_and_portfolio(
        self, service: Service, body: Body, headers: Headers
    ) -> None:
        async with service() as client:
            first = await client.post("/predict", content=body(), headers=headers("k"))
            second = await client.post("/predict", content=body(cash="17.25"), headers=headers("k"))
        assert second.content == first.content
        assert "idempotency-replayed" not in first.headers
        assert second.headers["idempotency-replayed"] == "true"

    async def test_every_request_without_a_key_is_decided(
        self, service: Service, body: Body, headers: Headers
    ) -> None:
        async with service() as client:
            answers = [await client.post("/predict", content=body(), headers=headers()) for _ in range(2)]
        assert answers[0].json()["requestId"] != answers[1].json()["requestId"]

    @pytest.mark.parametrize("other", [{"agent": "agent-2"}, {"newest": LATER}, {"count": 0}])
    async def test_a_key_is_refused_for_another_agent_or_candle_minute(
        self, service: Service, body: Body, headers: Headers, other: dict[str, object]
    ) -> None:
        async with service() as client:
            await client.post("/predict", content=body(), headers=headers("k"))
            answer = await client.post("/predict", content=body(**other), headers=headers("k"))
        assert answer.status_code == 422
        assert answer.json()["type"].endswith("key-reused")

    async def test_the_body_fingerprint_ignores_white_space_only(
        self, service: Service, body: Body, headers: Headers
    ) -> None:
        content = body()
        async with service(fingerprint="body") as client:
            await client.post("/predict", content=content, headers=headers("k"))
            again = await client.post("/predict", content=content.replace(b",", b", "), headers=headers("k"))
            other = await client.post("/predict", content=body(cash="17.25"), headers=headers("k"))
        assert again.headers.get("idempotency-replayed") == "true"
        assert other.status_code == 422

    async def test_concurrent_duplicates_share_one_run_and_one_answer(
        self, service: Service, body: Body, headers: Headers
    ) -> None:
        async with service() as client:
            answers = await asyncio.gather(
                *(client.post("/predict", content=body(), headers=headers("k")) for _ in range(50))
            )
            metrics = (await client.get("/metrics")).text
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert 'ml_service_cache_requests_total{result="miss"} 1.0' in metrics
        assert 'ml_service_cache_requests_total{result="hit"} 49.0' in metrics

    async def test_a_key_with_a_refused_body_can_be_used_again(
        self, service: Service, body: Body, headers: Headers
    ) -> None:
        async with service() as client:
            bad = await client.post("/predict", content=b'{"agentId": 7}', headers=headers("k"))
            good = await client.post("/predict", content=body(), headers=headers("k"))
        assert (bad.status_code, good.status_code) == (422, 200)

    async def test_a_wrong_api_key_gets_no_replay(
        self, service: Service, body: Body, headers: Headers
    ) -> None:
        async with service() as client:
            await client.post("/predict", content=body(), headers=headers("k"))
            answer = await client.post(
                "/predict", content=body(), headers=headers("k") | {"X-API-Key": "wrong"}
            )
        assert answer.status_code == 401

    async def test_a_key_belongs_to_the_caller_name_and_survives_api_key_rotation(
        self, service: Service, body: Body, headers: Headers, tmp_path
    ) -> None:
        file = tmp_path / "keys"
        file.write_text("backend = the-old-key-1\nbackend = the-new-key-2\nother = the-third-key\n")
        async with service(api_key=None, api_keys_file=file) as client:
            first, rotated, stranger = [
                await client.post("/predict", content=body(), headers=headers("k") | {"X-API-Key": key})
                for key in ("the-old-key-1", "the-new-key-2", "the-third-key")
            ]
        assert rotated.content == first.content
        assert "idempotency-replayed" not in stranger.headers
        assert stranger.content != first.content

    @pytest.mark.parametrize("key", ["", '"open', "a,b"])
    async def test_an_unreadable_idempotency_key_is_400(
        self, service: Service, body: Body, headers: Headers, key: str
    ) -> None:
        async with service() as client:
            answer = await client.post("/predict", content=body(), headers=headers(key))
        assert answer.status_code == 400


class TestBadRequests:
    """Each error is a problem document with a `detail`, and none echoes the body."""

    @pytest.mark.parametrize("key", [None, "k"])
    @pytest.mark.parametrize(
        ("content", "status", "slug"),
        [
            (b"", 422, "malformed-body"),
            (b"not json SECRET", 422, "malformed-body"),
            (b'{"agentId": "SECRET", "portfolio": {"cash": "SECRET"}}', 422, "malformed-body"),
            (b'{"agentId": NaN}', 422, "malformed-body"),
            (b"[" * 100_000, 400, "nested-too-deep"),
        ],
    )
    async def test_a_malformed_body_gets_a_problem_with_locations_and_no_values(
        self, service: Service, headers: Headers, content: bytes, status: int, slug: str, key: str | None
    ) -> None:
        async with service() as client:
            answer = await client.post("/predict", content=content, headers=headers(key))
        problem = answer.json()
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert problem["type"].endswith(slug)
        assert problem["status"] == status
        assert all({"type", "loc", "msg"} <= set(item) for item in problem["detail"])
        assert b"SECRET" not in answer.content

    async def test_a_bad_body_of_five_megabytes_gets_a_short_answer(
        self, service: Service, headers: Headers
    ) -> None:
        bad = b'{"agentId":"a","portfolio":{},"candles":[' + b'{"symbol":1},' * 300_000 + b"{}]}"
        async with service(max_body_bytes=10_000_000, handler_timeout=120) as client:
            answer = await client.post("/predict", content=bad, headers=headers())
        assert answer.status_code == 422
        assert len(answer.content) < 10_000

    async def test_a_large_body_over_the_deadline_is_504_and_releases_its_key(
        self, service: Service, body: Body, headers: Headers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = threading.Event()
        large = body(text="x" * 70_000)

        def stuck(*_: object) -> bytes:
            done.wait(5)  # less than the default of the setting
            return b""

        shared = Backend("sqlite", MemoryStore())
        async with (
            service(backend=shared, handler_timeout=0.05) as hurried,
            service(backend=shared) as patient,
        ):
            monkeypatch.setattr(PredictionService, "decide", stuck)
            cut = await hurried.post("/predict", content=large, headers=headers("k"))
            monkeypatch.undo()
            done.set()
            again = await patient.post("/predict", content=large, headers=headers("k"))
        assert (cut.status_code, again.status_code) == (504, 200)
        assert cut.json()["type"].endswith("handler-timeout")
        assert "idempotency-replayed" not in again.headers

    @pytest.mark.parametrize("key", [None, "k"])
    async def test_a_body_over_the_size_limit_is_413(
        self, service: Service, headers: Headers, key: str | None
    ) -> None:
        async def chunks():  # type: ignore[no-untyped-def]
            for _ in range(20):
                yield b"x" * 100

        async with service(max_body_bytes=1000) as client:
            declared = await client.post("/predict", content=b"x" * 1001, headers=headers(key))
            counted = await client.post("/predict", content=chunks(), headers=headers(key))
        assert (declared.status_code, counted.status_code) == (413, 413)
        assert "1000 bytes" in counted.json()["detail"]
        assert counted.json()["title"] == "Content Too Large"  # on every version of Python

    async def test_another_media_type_is_415(self, service: Service, body: Body, headers: Headers) -> None:
        async with service() as client:
            answer = await client.post(
                "/predict", content=body(), headers=headers() | {"Content-Type": "text/csv"}
            )
        assert answer.status_code == 415

    async def test_media_types_with_a_json_suffix_are_accepted(
        self, service: Service, body: Body, headers: Headers
    ) -> None:
        async with service() as client:
            for media_type in ("application/vnd.agent+json", "Application/JSON; charset=utf-8"):
                sent = headers() | {"Content-Type": media_type}
                assert (await client.post("/predict", content=body(), headers=sent)).status_code == 200

    async def test_a_compressed_body_is_415_with_the_remedy(
        self, service: Service, body: Body, headers: Headers
    ) -> None:
        async with service() as client:
            answer = await client.post(
                "/predict", content=gzip.compress(body()), headers=headers() | {"Content-Encoding": "gzip"}
            )
        assert (answer.status_code, answer.json()["detail"]) == (415, "Send the body uncompressed")

    async def test_an_unknown_path_is_404_and_another_method_405_with_allow(
        self, service: Service, headers: Headers
    ) -> None:
        async with service() as client:
            nowhere = await client.get("/nowhere", headers=headers())
            wrong = await client.get("/predict", headers=headers())
        assert (nowhere.status_code, wrong.status_code) == (404, 405)
        assert nowhere.json()["type"].endswith(":not-found")
        assert wrong.json()["type"].endswith(":method-not-allowed")
        assert wrong.headers["allow"] == "POST"
        assert isinstance(wrong.json()["detail"], str)


async def test_an_exception_is_500_without_details_and_logged(
    service: Service,
    body: Body,
    headers: Headers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr("ml_api.predict.service.decide", fault)
    async with service() as client:
        answer = await client.post(
            "/predict", content=body(), headers=headers("k", **{"X-Request-ID": "r-1"})
        )
        monkeypatch.undo()
        retry = await client.post("/predict", content=body(), headers=headers("k"))
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "r-1"
    assert "hunter2" not in answer.text
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)
    assert retry.status_code == 200


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_client_disconnect_during_the_body_is_499_and_releases_the_key(
    service: Service, body: Body, headers: Headers, caplog: pytest.LogCaptureFixture, key: str | None
) -> None:
    caplog.set_level(logging.INFO, "ml_api")
    content = body()
    parts = [
        {"type": "http.request", "body": content[:100], "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, object]:
        return parts.pop(0)

    async def send(_: object) -> None:
        raise AssertionError("the client has disconnected")

    async with service() as client:
        application = client._transport.app
        lines = [(name.lower().encode(), value.encode()) for name, value in headers(key).items()]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": lines}
        await application(scope, receive, send)
        later = await client.post("/predict", content=content, headers=headers(key))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.status for record in caplog.records if record.name == "ml_api.request"] == [499, 200]
    assert "idempotency-replayed" not in later.headers


async def test_an_allowed_origin_may_send_the_key_and_read_the_replay_header(
    service: Service, body: Body, headers: Headers
) -> None:
    async with service(allowed_origin="https://app.example") as client:
        asked = "x-api-key,content-type,idempotency-key"
        preflight = await client.options(
            "/predict",
            headers={
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": asked,
            },
        )
        stranger = await client.options(
            "/predict", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        )
        refused = await client.post("/predict", content=body(), headers={"Origin": "https://app.example"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert stranger.status_code == 400
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    assert "Idempotency-Replayed" in refused.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    ("allowed", "warnings"), [("https://app.example", 0), ("*", 1), ("https://app.example, *", 1)]
)
async def test_the_log_warns_if_any_origin_may_call(
    service: Service, caplog: pytest.LogCaptureFixture, allowed: str, warnings: int
) -> None:
    async with service(allowed_origin=allowed) as client:
        application: Any = client._transport.app  # type: ignore[attr-defined]
        async with application.router.lifespan_context(application):
            pass
    assert (
        len([record for record in caplog.records if "pages of any origin" in record.getMessage()]) == warnings
    )


async def test_without_allowed_origins_no_cors_headers_are_sent(
    service: Service, body: Body, headers: Headers
) -> None:
    page = {"Origin": "https://app.example"}
    async with service() as client:
        preflight = await client.options("/predict", headers=page | {"Access-Control-Request-Method": "POST"})
        answer = await client.post("/predict", content=body(), headers=headers("k") | page)
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("allowed", ["*", "https://app.example"])
async def test_a_request_without_origin_gets_vary_origin_and_no_cors_headers(
    service: Service, body: Body, headers: Headers, allowed: str
) -> None:
    async with service(allowed_origin=allowed) as client:
        first, again = [await client.post("/predict", content=body(), headers=headers("k")) for _ in range(2)]
    assert (first.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    for answer in (first, again):
        assert answer.headers["vary"] == "Origin"
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_cache_misses_and_hits_are_logged_without_the_key(
    service: Service, body: Body, headers: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with service() as client:
        for _ in range(2):
            await client.post("/predict", content=body(), headers=headers("raw-key-of-the-client"))
    texts = [record.getMessage() for record in caplog.records if record.name == "ml_api.cache"]
    assert texts == ["Cache MISS", "Cache STORE", "Cache HIT"]
    digests = {record.__dict__["key_id"] for record in caplog.records if record.name == "ml_api.cache"}
    assert len(digests) == 1
    assert not any("raw-key" in str(vars(record)) for record in caplog.records)


async def test_every_answer_has_a_request_id_and_invalid_ones_are_replaced(
    service: Service, headers: Headers
) -> None:
    async with service() as client:
        own = await client.get("/health")
        given = await client.get("/health", headers={"X-Request-ID": "trace-7.a"})
        strange = await client.get("/health", headers={"X-Request-ID": "a b\tc"})
    assert re.fullmatch(r"[0-9a-f]{32}", own.headers["x-request-id"])
    assert given.headers["x-request-id"] == "trace-7.a"
    assert re.fullmatch(r"[0-9a-f]{32}", strange.headers["x-request-id"])


async def test_health_has_both_spellings_and_needs_no_key(service: Service) -> None:
    async with service(model_version="1.0.0") as client:
        answer = await client.get("/health")
    assert answer.json() == {
        "status": "healthy",
        "model_loaded": True,
        "model_version": "1.0.0",
        "schema_version": "1.0",
        "modelLoaded": True,
        "modelVersion": "1.0.0",
        "schemaVersion": "1.0",
    }


async def test_ready_reports_the_model_and_the_store_without_a_key(service: Service) -> None:
    store = MemoryStore()
    monitor = RedisMonitor(store, Metrics())
    watched = Backend("redis", store, monitor)
    async with service(model_version="1.0.0") as client:
        own = await client.get("/ready")
    async with service(backend=watched, model_version="1.0.0") as client:
        before = await client.get("/ready")
        await monitor.check()
        after = await client.get("/ready")
    assert own.json() == {"status": "ready", "modelVersion": "1.0.0", "store": "sqlite", "storeUp": True}
    assert before.json() == {"status": "ready", "modelVersion": "1.0.0", "store": "redis", "storeUp": None}
    assert after.json()["storeUp"] is True


async def test_a_key_replays_for_another_second_of_the_same_minute(
    service: Service, body: Body, headers: Headers
) -> None:
    async with service() as client:
        first = await client.post("/predict", content=body(newest=LATER), headers=headers("k"))
        second = await client.post(
            "/predict", content=body(newest=LATER + timedelta(seconds=59)), headers=headers("k")
        )
    assert second.content == first.content


async def test_fixed_rules_decide_if_the_model_file_is_missing_and_rule_fallback_is_set(
    service: Service, body: Body, headers: Headers
) -> None:
    async with service(model_path="/no/such/model.txt", rule_fallback=True) as client:
        answer = await client.post("/predict", content=body(), headers=headers())
        health = (await client.get("/health")).json()
    assert (answer.status_code, answer.json()["modelVersion"]) == (200, "rules")
    assert len(answer.json()["signals"]) == 18
    assert (health["modelLoaded"], health["model_loaded"], health["modelVersion"]) == (False, False, "rules")
