"""Failed authentications: a few are free, more are slow, and a flood is refused unseen; memory is bounded."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from ml_api.http.api_keys import ApiKeys
from ml_api.http.auth import Authentication
from ml_api.http.failed_attempts import FailedAttempts

pytestmark = pytest.mark.anyio


class Time:
    """A clock that moves only when somebody sleeps or says so."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_a_few_failures_are_answered_at_once_and_the_next_ones_are_delayed() -> None:
    time = Time()
    failures = FailedAttempts(burst=3, per_minute=60, delay=1.0, clock=time, sleep=time.sleep)
    assert [await failures.failed("10.0.0.1") for _ in range(5)] == [False] * 3 + [True] * 2
    assert time.slept == [1.0, 1.0]
    assert await failures.failed("10.0.0.2") is False
    time.now = 1.0  # one more failure has become free
    assert [await failures.failed("10.0.0.1") for _ in range(2)] == [False, True]


async def test_an_ipv6_network_of_one_customer_is_one_address_and_mapped_ipv4_is_ipv4() -> None:
    time = Time()
    failures = FailedAttempts(burst=1, clock=time, sleep=time.sleep)
    assert [await failures.failed(f"2001:db8::{end}") for end in (1, 2)] == [False, True]
    assert await failures.failed("2001:db8:0:1::1") is False
    assert [await failures.failed(address) for address in ("::ffff:10.0.0.9", "10.0.0.9")] == [False, True]
    assert await failures.failed("") is False


async def test_the_address_that_failed_longest_ago_is_forgotten_first() -> None:
    time = Time()
    failures = FailedAttempts(burst=1, max_addresses=100, clock=time, sleep=time.sleep)
    for number in range(1000):
        await failures.failed(f"10.0.{number // 250}.{number % 250}")
    assert len(failures._left) == 100
    assert await failures.failed("10.0.0.0") is False  # forgotten
    assert await failures.failed("10.0.3.249") is True


async def test_a_valid_key_is_never_delayed_and_while_delays_are_used_up_its_address_alone_is_refused() -> (
    None
):
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
        refused = await guesser.get("/", headers=right)  # not even looked at
        assert (await other.get("/", headers=right)).text == "in"
        assert (await other.get("/", headers=wrong)).status_code == 401
        release.set()
        assert (await delayed).status_code == 401
        assert (await guesser.get("/", headers=right)).text == "in"
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["type"].endswith("too-many-failures")
    assert len(slowed) == 2
