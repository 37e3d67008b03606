"""The quota of recorded bytes per caller, and answers that cannot be recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from idempotency import StoreUnavailable
from idempotency.stores.memory import MemoryStore
from ml_api.stores.backend import Backend
from ml_api.stores.quota import StoredBytes

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
