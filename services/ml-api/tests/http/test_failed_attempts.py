"""Failed authentications: a burst is free, more are delayed, and a flood is refused; memory is bounded."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from ml_api.http.api_keys import ApiKeys
from ml_api.http.auth import Authentication
from ml_api.http.failed_attempts import FailedAttempts

pytestmark = pytest.mark.anyio


class FakeClock:
    """A clock that the test sets, and a record of the sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_failures_beyond_the_burst_are_delayed() -> None:
    time = FakeClock()
    failures = FailedAttempts(burst=3, per_minute=60, delay=1.0, clock=time, sleep=time.sleep)
    assert [await failures.failed("10.0.0.1") for _ in range(5)] == [False] * 3 + [True] * 2
    assert time.slept == [1.0, 1.0]
    assert await failures.failed("10.0.0.2") is False
    time.now = 1.0  # one failure has been refilled
    assert [await failures.failed("10.0.0.1") for _ in range(2)] == [False, True]


async def test_an_ipv6_64_network_counts_as_one_address_and_mapped_ipv4_as_ipv4() -> None:
    time = FakeClock()
    failures = FailedAttempts(burst=1, clock=time, sleep=time.sleep)
    assert [await failures.failed(f"2001:db8::{end}") for end in (1, 2)] == [False, True]
    assert await failures.failed("2001:db8:0:1::1") is False
    assert [await failures.failed(address) for address in ("::ffff:10.0.0.9", "10.0.0.9")] == [False, True]
    assert await failures.failed("") is False


async def test_addresses_are_limited_and_the_oldest_is_forgotten_first() -> None:
    time = FakeClock()
    failures = FailedAttempts(burst=1, max_addresses=100, clock=time, sleep=time.sleep)
    for number in range(1000):
        await failures.failed(f"10.0.{number // 250}.{number % 250}")
    assert len(failures._left) == 100
    assert await failures.failed("10.0.0.0") is False  # forgotten
    assert await failures.failed("10.0.3.249") is True


async def test_only_the_delayed_address_is_429_while_all_delays_are_in_use() -> None:
    release, slept, slowed = asyncio.Event(), asyncio.Event(), []

    async def sleep(_: float) -> None:
        slept.set()
        await release.wait()

    app = Authentication(
        PlainTextResponse("in"),
        keys=ApiKeys(single="the-right-key"),
        failures=FailedAttempts(burst=1, max_delayed=1, sleep=sleep),
        slowed=lambda: slowed.append(1),
    )

    def client(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://service")

    right, wrong = {"X-API-Key": "the-right-key"}, {"X-API-Key": "a-wrong-key"}
    async with client("10.0.0.1") as guesser, client("10.0.0.2") as other:
        assert (await guesser.get("/", headers=wrong)).status_code == 401
        delayed = asyncio.create_task(guesser.get("/", headers=wrong))
        await slept.wait()
        refused = await guesser.get("/", headers=right)  # its key is not checked
        assert (await other.get("/", headers=right)).text == "in"
        assert (await other.get("/", headers=wrong)).status_code == 401
        release.set()
        assert (await delayed).status_code == 401
        assert (await guesser.get("/", headers=right)).text == "in"
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["type"].endswith("too-many-failures")
    assert len(slowed) == 2
