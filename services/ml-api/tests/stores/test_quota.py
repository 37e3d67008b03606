"""The quota of recorded bytes per caller, and answers that cannot be recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from idempotency import StoreUnavailable
from idempotency.stores.memory import MemoryStore
from ml_api.stores.backend import Backend
from ml_api.stores.quota import AnswerQuota, StoredBytes

pytestmark = pytest.mark.anyio

Service = Callable[..., httpx.AsyncClient]
Body = Callable[..., bytes]
Headers = Callable[..., dict[str, str]]


def test_stored_bytes_are_counted_per_caller_until_they_expire_in_bounded_memory() -> None:
    now = 0.0
    stored = StoredBytes(1000, retention=60.0, clock=lambda: now)
    for second in range(30):
        now = float(second)
        stored.add("one", 10)
    assert (stored.used("one"), stored.used("two")) == (300, 0)
    now = 59.0
    assert stored.used("one") == 300
    now = 91.0
    assert stored.used("one") == 0
    for step in range(100_000):
        now = 100 + step / 1000
        stored.add("one", 1)
    assert len(stored._slots["one"]) <= 102
    assert stored.used("one") <= 100_000
    assert 1 <= stored.wait("one") <= 61


async def test_a_caller_over_its_quota_is_429_except_for_replays_and_requests_without_key(
    service: Service, body: Body, headers: Headers
) -> None:
    async with service(quota_bytes=6000) as client:
        first = await client.post("/predict", content=body(agent="one"), headers=headers("k1"))
        statuses = [
            (await client.post("/predict", content=body(agent="one"), headers=headers(f"k{n}"))).status_code
            for n in range(2, 5)
        ]
        refused = await client.post("/predict", content=body(agent="one"), headers=headers("k4"))
        replay = await client.post("/predict", content=body(agent="one"), headers=headers("k1"))
        keyless = await client.post("/predict", content=body(agent="one"), headers=headers())
    assert first.status_code == 200
    assert statuses[-1] == 429
    assert refused.json()["type"].endswith("answer-quota-used-up")
    assert int(refused.headers["retry-after"]) >= 1
    assert (replay.content, replay.headers["idempotency-replayed"]) == (first.content, "true")
    assert keyless.status_code == 200


def quota_app(limit: int, start: dict[str, Any], *chunks: bytes) -> tuple[StoredBytes, Callable[[], Any]]:
    """The quota around an application that sends *start* and *chunks*; and a call of it, which returns the messages."""
    stored = StoredBytes(limit, retention=60.0, clock=lambda: 0.0)

    async def app(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", **start})
        for place, chunk in enumerate(chunks, 1):
            await send({"type": "http.response.body", "body": chunk, "more_body": place < len(chunks)})

    async def call() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        scope = {"type": "http", "headers": [(b"idempotency-key", b"k")], "ml_api.caller": "one"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await AnswerQuota(app, stored=stored)(scope, receive=None, send=send)  # type: ignore[arg-type]
        return sent

    return stored, call


async def test_an_answer_counts_with_its_body_and_the_rest_of_its_record_up_to_the_limit() -> None:
    start = {"status": 200, "headers": [(b"content-length", b"4")]}
    stored, call = quota_app(2 * (512 + 4), start, b"an", b"sw")
    for used in (516, 1032):
        messages = await call()
        assert [messages[0]["status"], *(message["body"] for message in messages[1:])] == [200, b"an", b"sw"]
        assert stored.used("one") == used
    assert (await call())[0]["status"] == 429


async def test_an_answer_that_is_larger_than_the_rest_of_the_quota_is_replaced_and_not_counted() -> None:
    start = {"status": 200, "headers": [(b"content-length", b"4")]}
    stored, call = quota_app(515, start, b"an", b"sw")
    messages = await call()
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    assert messages[0]["status"] == 429
    assert b"answer-quota-used-up" in messages[1]["body"]
    assert stored.used("one") == 0


async def test_a_refusal_counts_nothing() -> None:
    stored, call = quota_app(10_000, {"status": 422, "headers": [(b"content-length", b"4")]}, b"no!!")
    start, body = await call()
    assert (start["status"], body["body"]) == (422, b"no!!")
    assert stored.used("one") == 0


class FullStore(MemoryStore):
    """A store that accepts claims and refuses answers, like a full Redis."""

    async def complete(self, *_: Any, **__: Any) -> bool:
        raise StoreUnavailable("OOM command not allowed when used memory > 'maxmemory'")


@pytest.mark.parametrize(("on_store_error", "status"), [("refuse", 503), ("bypass", 200)])
async def test_an_unrecorded_answer_is_503_unless_store_errors_are_bypassed(
    service: Service, body: Body, headers: Headers, on_store_error: str, status: int
) -> None:
    store = FullStore()
    full = Backend("sqlite", store)
    async with service(backend=full, on_store_error=on_store_error) as client:
        answer = await client.post("/predict", content=body(), headers=headers("k"))
        keyless = await client.post("/predict", content=body(), headers=headers())
    assert answer.status_code == status
    assert keyless.status_code == 200
    if status == 503:
        assert answer.json()["type"].endswith("answer-not-recorded")
        assert int(answer.headers["retry-after"]) >= 1
