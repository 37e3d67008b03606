"""
Checks Redis every few seconds, to log the beginning and end of an outage.

Requests do not depend on this: they call Redis with their own deadlines. `/ready` reports the last result and does not
wait for Redis.
"""

from __future__ import annotations

import asyncio
import logging

from idempotency import StorageKey, Store, StoreError
from ml_api.observability.metrics import Metrics

__all__ = ["PROBE", "RedisMonitor"]

_log = logging.getLogger("ml_api.cache")

PROBE = StorageKey("ml-service.probe")
"""A key that is only read, never written."""


class RedisMonitor:
    """
    Checks Redis every *interval* seconds, or every second while it is away, and remembers the result.

    Args:
        store: The store to check; its own deadline limits each call.
        interval: Seconds between checks.
    Attributes:
        up: The last result; None before the first check.
    """

    def __init__(self, store: Store, metrics: Metrics, *, interval: float = 5.0) -> None:
        self._store, self._metrics, self._interval = store, metrics, interval
        self.up: bool | None = None

    async def check(self) -> bool:
        """Check once; set the metrics, and log a change."""
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
