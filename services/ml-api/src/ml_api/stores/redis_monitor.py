"""
Pings Redis every few seconds, so that an outage and its end are noticed and logged.

It decides nothing. Requests find out for themselves, inside their own deadlines; `/health` and `/ready`
read the last answer and never wait for one.
"""

from __future__ import annotations

import asyncio
import logging

from idempotency import StorageKey, Store, StoreError
from ml_api.observability.metrics import Metrics

__all__ = ["PROBE", "RedisMonitor"]

_log = logging.getLogger("ml_api.cache")

PROBE = StorageKey("ml-service.probe")
"""A key that is asked for and never written."""


class RedisMonitor:
    """
    Checks every *interval* seconds, every second while Redis is away, and remembers the answer.

    Args:
        store: What is asked; its own deadline bounds each question.
        interval: Seconds between questions.
    Attributes:
        up: The last answer; None before the first.
    """

    def __init__(self, store: Store, metrics: Metrics, *, interval: float = 5.0) -> None:
        self._store, self._metrics, self._interval = store, metrics, interval
        self.up: bool | None = None

    async def check(self) -> bool:
        """Ask once; log and count a change."""
        try:
            await self._store.get(PROBE)
        except StoreError as error:
            self._metrics.redis_connection_errors.inc()
            if self.up is not False:
                _log.error("ERROR Redis cache unreachable", extra={"reason": str(error)})
            self.up = False
        else:
            if not self.up:
                _log.info("Redis cache connected")
            self.up = True
        self._metrics.redis_up.set(self.up)
        return self.up

    async def run(self) -> None:
        """Check for ever; cancel to stop."""
        while True:
            up = await self.check()
            await asyncio.sleep(self._interval if up else min(1.0, self._interval))
