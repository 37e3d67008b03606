"""Who serves which slot of a cluster: learned by redis-py's client, asked anew by one task however many need it."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["Layout"]


class Layout:
    """
    What a cluster's client knows of the cluster.

    Args:
        client: `redis.asyncio.RedisCluster`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._renewal: asyncio.Task[None] | None = None

    async def renew(self) -> None:
        """Ask the nodes, and wait for the answer. Cancelled, the asking goes on: others wait for it, or will."""
        renewal = self.renew_behind()
        await asyncio.wait({renewal})
        renewal.result()

    def renew_behind(self) -> asyncio.Task[None]:
        """
        Ask the nodes without waiting.

        For who has no time left: a primary that is silent uses up every call's time, and none would ever learn that
        a replica has taken its place.
        """
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._client.nodes_manager.initialize())
            self._renewal.add_done_callback(_hear)
        return self._renewal

    async def aclose(self) -> None:
        """Stop asking."""
        if self._renewal is not None and not self._renewal.done():
            self._renewal.cancel()
            await asyncio.wait({self._renewal})


def _hear(renewal: asyncio.Task[None]) -> None:
    if not renewal.cancelled():
        renewal.exception()  # the old layout stays, and the next call that fails asks again
