"""The rate limit: bursts pass, more is 429 with the time to wait, and each caller has its own limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from ml_api.http.api_keys import ApiKeys
from ml_api.http.auth import Authentication
from ml_api.http.rate_limit import RateLimit, TokenBuckets

pytestmark = pytest.mark.anyio


async def test_a_caller_over_its_rate_is_429_until_a_token_is_refilled(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "keys"
    file.write_text("one = the-key-of-one-1\ntwo = the-key-of-two-2\n")
    limited = RateLimit(PlainTextResponse("fine"), buckets=TokenBuckets(2, clock=lambda: now))
    app = Authentication(limited, keys=ApiKeys(file=file))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:

        async def ask(key: str) -> httpx.Response:
            return await client.post("/predict", headers={"X-API-Key": key})

        burst = [(await ask("the-key-of-one-1")).status_code for _ in range(3)]
        refused = await ask("the-key-of-one-1")
        other = await ask("the-key-of-two-2")
        now = 30.0
        later = await ask("the-key-of-one-1")
    assert burst == [200, 200, 429]
    assert refused.headers["retry-after"] == "30"
    assert refused.json()["type"].endswith("rate-limited")
    assert (other.status_code, later.status_code) == (200, 200)


async def test_tokens_are_refilled_over_time_up_to_one_minute_of_requests() -> None:
    now = 0.0
    limited = RateLimit(PlainTextResponse("fine"), buckets=TokenBuckets(2, clock=lambda: now))
    app = Authentication(limited, keys=ApiKeys(single="key"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:

        async def ask(at: float) -> tuple[int, str | None]:
            nonlocal now
            now = at
            answer = await client.post("/", headers={"X-API-Key": "key"})
            return answer.status_code, answer.headers.get("retry-after")

        assert [await ask(0), await ask(0)] == [(200, None)] * 2
        assert [await ask(10.5), await ask(29.5), await ask(30.5)] == [(429, "20"), (429, "1"), (200, None)]
        assert [await ask(3630), await ask(3630), await ask(3630)] == [(200, None)] * 2 + [(429, "30")]


async def test_the_rate_limit_setting_applies_to_predict_and_not_to_health(
    service: Callable[..., httpx.AsyncClient],
    body: Callable[..., bytes],
    headers: Callable[..., dict[str, str]],
) -> None:
    async with service(rate_limit=1) as client:
        statuses = [
            (await client.post("/predict", content=body(), headers=headers())).status_code for _ in range(2)
        ]
        health = await client.get("/health")
    assert statuses == [200, 429]
    assert health.status_code == 200
