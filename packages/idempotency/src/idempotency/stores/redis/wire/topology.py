"""Reads and refreshes the nodes and slots of a cluster in redis-py's client; one task does it for all callers."""

from __future__ import annotations

import asyncio
from typing import Any

from idempotency.stores.redis.errors import closed

__all__ = ["ClusterTopology"]

_LIMIT = 60.0  # seconds; a client without a timeout of its own would wait for a silent node without end


class ClusterTopology:
    """
    The slots and nodes that a cluster's client knows.

    Args:
        client: `redis.asyncio.RedisCluster`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._is_known = False
        self._renewal: asyncio.Task[None] | None = None

    async def learn(self) -> None:
        """Read it, unless it was read before."""
        if not self._is_known:
            await self.renew()

    async def renew(self) -> None:
        """Refresh, and wait for the end. If the caller is cancelled, the refresh goes on, for other callers."""
        renewal = self.renew_in_background()
        await asyncio.wait({renewal})
        if renewal.cancelled():
            raise closed()
        renewal.result()

    def renew_in_background(self) -> asyncio.Task[None]:
        """
        Refresh without waiting.

        For a caller without time left: a silent primary uses up the time of each call, so otherwise no call would find
        the replica that has become the new primary.
        """
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._read())
            self._renewal.add_done_callback(_hear)
        return self._renewal

    async def aclose(self) -> None:
        """Stop refreshing."""
        if self._renewal is not None and not self._renewal.done():
            self._renewal.cancel()
            await asyncio.wait({self._renewal})

    async def _read(self) -> None:
        # Never two at once: before redis-py 6.2 one of them fails, as the other changes the nodes.
        async with asyncio.timeout(_LIMIT):
            if self._is_known:
                await self._client.nodes_manager.initialize()
            else:
                await self._client.initialize()
                self._is_known = True


def _hear(renewal: asyncio.Task[None]) -> None:
    if not renewal.cancelled():
        renewal.exception()  # marks it as seen; the old topology stays until the next failed call refreshes again
