"""The nodes and slots of a cluster, as redis-py's client learns them; one task refreshes them for all callers."""

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
        """Refresh and wait for it. If the caller is cancelled the refresh goes on, since others may wait for it."""
        renewal = self.renew_in_background()
        await asyncio.wait({renewal})
        renewal.result()

    def renew_in_background(self) -> asyncio.Task[None]:
        """
        Refresh without waiting.

        For a caller that has no time left: a silent primary uses up each call's time, so no call would ever learn that
        a replica has taken its place.
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
        renewal.exception()  # the old topology stays, and the next call that fails refreshes again
