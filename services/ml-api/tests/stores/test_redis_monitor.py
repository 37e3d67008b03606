"""The monitor of Redis: its log lines, its metrics, and how often it checks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from idempotency import StorageKey, StoreUnavailable
from idempotency.stores.memory import MemoryStore
from ml_api.observability.metrics import Metrics
from ml_api.stores.redis_monitor import RedisMonitor

pytestmark = pytest.mark.anyio


class Flaky(MemoryStore):
    """A store whose lookups succeed or fail as scripted."""

    def __init__(self, answers: Iterable[bool]) -> None:
        super().__init__()
        self._answers = iter(answers)

    async def get(self, key: StorageKey) -> None:
        if not next(self._answers):
            raise StoreUnavailable("away")


async def test_an_outage_and_its_end_are_logged_once_and_every_failure_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "ml_api.cache")
    metrics = Metrics()
    answers = [False, False, True, True, True, False]
    monitor = RedisMonitor(Flaky(answers), metrics)
    assert monitor.up is None
    for number, answer in enumerate(answers):
        assert await monitor.check() is answer
        assert monitor.up is answer
        lines = metrics.render().decode().splitlines()
        assert f"ml_service_redis_up {float(answer)}" in lines
        assert (
            f"ml_service_redis_connection_errors_total {float(answers[: number + 1].count(False))}" in lines
        )
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "ERROR Redis cache unreachable"),
        ("INFO", "Redis cache connected"),
        ("ERROR", "ERROR Redis cache unreachable"),
    ]
    assert "away" in caplog.records[0].__dict__["reason"]


@pytest.mark.parametrize(("interval", "while_away"), [(5.0, 1.0), (0.25, 0.25)])
async def test_redis_is_checked_at_the_interval_and_every_second_during_an_outage(
    monkeypatch: pytest.MonkeyPatch, interval: float, while_away: float
) -> None:
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("ml_api.stores.redis_monitor.asyncio.sleep", sleep)
    monitor = RedisMonitor(Flaky([True, False, True]), Metrics(), interval=interval)
    with pytest.raises(asyncio.CancelledError):
        await monitor.run()
    assert delays == [interval, while_away, interval]
