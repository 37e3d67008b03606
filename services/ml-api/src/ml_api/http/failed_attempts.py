"""Slows failed authentications: after a few from one address, each further one waits, against guessing."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address

__all__ = ["FailedAttempts"]


class FailedAttempts:
    """
    Counts failed authentications by client address and delays them once there are too many.

    Each address may fail *burst* times at once and *per_minute* times a minute after that. A further failure is
    answered only after *delay* seconds. At most *max_delayed* answers are delayed at a time in this process; while
    that many are, an address that has used up its failures is `blocked`: its requests should be refused before their
    key is looked at. So a process never compares more than *max_delayed* guesses every *delay* seconds beyond the
    bursts. A valid key is never delayed.

    Args:
        max_addresses: How many addresses are remembered; the one that failed longest ago is forgotten first.
        clock: Monotonic seconds.
        sleep: Waits for some seconds.

    IPv6 addresses count by their /64 network, which one customer usually has whole.
    """

    def __init__(
        self,
        *,
        burst: int = 20,
        per_minute: int = 20,
        delay: float = 1.0,
        max_delayed: int = 64,
        max_addresses: int = 4096,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._burst, self._per_second, self._delay = float(burst), per_minute / 60, delay
        self._max_delayed, self._max_addresses = max_delayed, max_addresses
        self._clock, self._sleep = clock, sleep
        self._delayed = 0
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # failures left, and when counted

    def blocked(self, address: str) -> bool:
        """Whether a request from *address* should be refused without looking at its key."""
        return self._delayed >= self._max_delayed and self._remaining(_network(address)) < 1

    async def failed(self, address: str) -> bool:
        """Count one failure from *address*; returns whether it was delayed."""
        network = _network(address)
        left = self._remaining(network)
        self._left[network] = max(left - 1, 0.0), self._clock()
        self._left.move_to_end(network)
        if len(self._left) > self._max_addresses:
            self._left.popitem(last=False)
        if left >= 1:
            return False
        self._delayed += 1
        try:
            # Also for a client that has hung up: else disconnecting early would buy another guess.
            await self._sleep(self._delay)
        finally:
            self._delayed -= 1
        return True

    def _remaining(self, network: str) -> float:
        left, counted = self._left.get(network, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - counted) * self._per_second)


def _network(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address  # a Unix socket's peer, say
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return parsed.exploded[:19]
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
