"""Refreshes the nodes and slots of a cluster in redis-py's client; one task does it for all callers."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["ClusterTopology"]


class ClusterTopology:
    """
    The slots and nodes that a cluster's client knows.

    Args:
        client: `redis.asyncio.RedisCluster`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._renewal: asyncio.Task[None] | None = None

    async def renew(self) -> None:
        """Refresh, and wait for the end. If the caller is cancelled, the refresh goes on, for other callers."""
        renewal = self.renew_in_background()
        await asyncio.wait({renewal})
        renewal.result()

    def renew_in_background(self) -> asyncio.Task[None]:
        """
        Refresh without waiting.

        For a caller without time left: a silent primary uses up the time of each call, so otherwise no call would find
        the replica that has become the new primary.
        """
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._client.nodes_manager.initialize())
            self._renewal.add_done_callback(_hear)
        return self._renewal

    async def aclose(self) -> None:
        """Stop refreshing."""
        if self._renewal is not None and not self._renewal.done():
            self._renewal.cancel()
            await asyncio.wait({self._renewal})


def _hear(renewal: asyncio.Task[None]) -> None:
    if not renewal.cancelled():
        renewal.exception()  # marks it as seen; the old topology stays until the next failed call refreshes again
